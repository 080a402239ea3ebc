"""A fleet in mid-life, written by storage's own functions: for the API's and the console's tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from meta_agent.access import hash_password
from policies.policy import Policy
from storage import (
    audit,
    chat,
    decisions,
    deployments,
    evaluations,
    identities,
    interactions,
    proposals,
    registry,
    rollouts,
    routes,
    use_cases,
)
from storage.api_keys import format_key
from storage.clock import now
from storage.database import Connection, Database
from storage.ids import new_id
from storage.routes import ArmSetting
from storage.vocabulary import Arm, AssignmentUnit, EvaluationStatus, Risk, Role, RolloutState, Severity
from tools.propose import propose

PASSWORD = "correct horse battery staple"
HOSTILE = '<img src=x onerror=alert(1)>"><script>window.hacked=1</script>'
PEOPLE = {"vera": Role.VIEWER, "otto": Role.OPERATOR, "anna": Role.APPROVER, "admin": Role.ADMIN}
SECRET = "s" * 48
METRICS = ("failure", "violation", "latency", "cost")


@dataclass(frozen=True)
class Seeded:
    """The ids that tests look for."""

    stable: str
    swift: str
    bargain: str
    running: str  #: rollout under way
    rolled_back: str
    evaluation: str
    waiting: str  #: proposal by the agent
    own: str  #: proposal by the approver herself
    offering: str


def key(scope: str) -> str:
    """The seeded key of a scope, as it is sent."""
    return format_key(f"seed-{scope}", SECRET)


async def seed(database: Database, policy: Policy) -> Seeded:
    """Everything at once."""
    async with database.transaction() as connection:
        await _people(connection)
        await _use_cases(connection)
        offerings = await _catalogue(connection)
        releases = await _releases(connection, offerings)
        evaluation = await _evaluation(connection, releases, offerings["swift"])
        rolled_back = await _rolled_back(connection, releases)
        running = await _running(connection, releases)
        await _ranking(connection, offerings, evaluation)
    await _traffic(database, releases, running, rolled_back)
    waiting, own = await _proposals(database, policy, releases)
    return Seeded(
        stable=releases["big"],
        swift=releases["swift"],
        bargain=releases["bargain"],
        running=running,
        rolled_back=rolled_back,
        evaluation=evaluation,
        waiting=waiting,
        own=own,
        offering=offerings["swift"],
    )


async def _people(connection: Connection) -> None:
    stored = hash_password(PASSWORD)
    for name, role in PEOPLE.items():
        await identities.ensure_user(connection, name=name, password_hash=stored, role=role)
    actors = {"read": "vera", "operate": "otto", "approve": "anna", "admin": "admin"}
    for scope, name in actors.items():
        await identities.ensure_key(
            connection, key_id=f"seed-{scope}", secret=SECRET, name=scope, scopes=[scope], acts_as=name
        )
    await identities.ensure_key(connection, key_id="seed-infer", secret=SECRET, name="app", scopes=["infer"])
    await identities.ensure_key(connection, key_id="seed-nobody", secret=SECRET, name="x", scopes=["approve"])


async def _use_cases(connection: Connection) -> None:
    plan = {"shadow": {"share": 1.0, "min_pairs": 40, "max_wait_seconds": 60}}
    for name, risk, budget in (
        ("story-teller", Risk.MEDIUM, 500.0),
        ("support-triage", Risk.HIGH, 1200.0),
        ("summaries", Risk.LOW, None),
    ):
        await use_cases.declare(
            connection,
            name=name,
            risk=risk,
            budget_usd_per_month=budget,
            rollout_plan=plan,
            constraints={"context": 8192, "capabilities": ["streaming"]},
        )


async def _catalogue(connection: Connection) -> dict[str, str]:
    moment = now()
    names = {
        "big": ("studio", "storyteller-large", "0.0000025", "0.00001"),
        "swift": ("swift", "swift-2", "0.0000006", "0.0000024"),
        "bargain": ("bargain", "bargain-mini", "0.0000001", "0.0000004"),
        "hostile": ("swift", HOSTILE, "0.000001", None),
    }
    rows = [
        {
            "source": "price-map" if name == "hostile" else "providers",
            "external_id": f"{provider}/{model}",
            "provider": provider,
            "model": model,
            "reachable": name != "hostile",
            "price_input": Decimal(price_in),
            "price_output": Decimal(price_out) if price_out else None,
            "context_tokens": 128_000,
            "output_tokens": 8_192,
            "capabilities": ["streaming", "tools", "vision"],
            "lifecycle": "active",
            "retires_at": moment + timedelta(days=60) if name == "bargain" else None,
            "payload_digest": "0" * 64,
            "payload": {},
            "first_seen_at": moment - timedelta(days=3),
            "last_seen_at": moment,
        }
        for name, (provider, model, price_in, price_out) in names.items()
    ]
    rows += [
        {
            **rows[0],
            "external_id": f"vendor-{index % 7}/model-{index:03}",
            "provider": f"vendor-{index % 7}",
            "model": f"model-{index:03}",
            "reachable": False,
            "source": "price-map",
        }
        for index in range(120)
    ]
    ids = dict(zip((*names, *range(120)), await registry.insert_offerings(connection, rows), strict=True))
    await registry.record_attempt(connection, name="providers", kind="openai_compatible", error=None, count=3)
    await registry.record_attempt(connection, name="price-map", kind="price_map", error=None, count=121)
    await registry.record_attempt(
        connection, name="lab", kind="vllm", error="connection refused by 127.0.0.1:8000"
    )
    await registry.record_changes(
        connection,
        [
            {"offering_id": ids["swift"], "kind": "appeared", "before": None, "after": {}},
            {"offering_id": ids["bargain"], "kind": "price", "before": {"price_input": "2e-7"}, "after": {}},
            {"offering_id": ids["hostile"], "kind": "appeared", "before": None, "after": {}},
        ],
    )
    return {str(name): offering for name, offering in ids.items()}


async def _releases(connection: Connection, offerings: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("big", "swift", "bargain", "hostile"):
        offering = await registry.find_offering(connection, offerings[name])
        assert offering is not None
        deployment = await deployments.ensure_deployment(
            connection,
            provider=offering.provider,
            model=offering.model,
            price_input=offering.price_input or Decimal(0),
            price_output=offering.price_output or Decimal(0),
            offering_id=offering.id,
        )
        for use_case in ("story-teller", "support-triage", "summaries"):
            release = await deployments.create_release(
                connection, use_case=use_case, deployment_id=deployment, created_by="settings"
            )
            found.setdefault(name, release)
            if name == "big" or (name == "hostile" and use_case == "summaries"):
                await deployments.mark_stable(connection, release)
                await _route(connection, use_case, [ArmSetting(Arm.STABLE, release, 1.0)], "first route")
    return found


async def _route(
    connection: Connection, use_case: str, arms: list[ArmSetting], reason: str, rollout: str | None = None
) -> None:
    await routes.set_route(
        connection,
        use_case=use_case,
        arms=arms,
        assignment_unit=AssignmentUnit.CONVERSATION,
        reason=reason,
        created_by=rollout or "settings",
        rollout_id=rollout,
    )
    await audit.append(
        connection,
        actor=rollout or "settings",
        event="route.set",
        subject=use_case,
        data={"use_case": use_case, "reason": reason},
    )


def metric(name: str, candidate: float, stable: float, e_value: float, units: int) -> dict[str, Any]:
    """One metric as the analysis writes it."""
    limit = {"failure": 714.0, "violation": 714.0, "latency": 1250.0, "cost": 2500.0}[name]
    failed = e_value >= limit
    return {
        "name": name,
        "phase": "failed" if failed else "successful",
        "candidate": candidate,
        "stable": stable,
        "e_value": e_value,
        "threshold": limit,
        "units_candidate": units,
        "units_stable": units * 3,
        "why": f"worse than tolerated: e-value {e_value:.3g}"
        if failed
        else "no evidence against the candidate",
    }


def _plan() -> dict[str, Any]:
    weights = (0.1, 0.25, 0.5, 1.0)
    return {
        "shadow": {"share": 1.0, "min_pairs": 40, "max_wait_seconds": 60},
        "canary": [{"weight": weight, "min_units": 60, "max_wait_seconds": 60} for weight in weights],
        "unit": "conversation",
    }


async def _measured(connection: Connection, rollout_id: str, ill_from: int, count: int) -> None:
    for index in range(count):
        rollout = await rollouts.find(connection, rollout_id)
        assert rollout is not None
        stage = index * 4 // count
        state = RolloutState.SHADOW if stage == 0 else RolloutState.CANARY
        weight = (0.0, 0.1, 0.25, 0.5)[stage]
        ill = max(0, index - ill_from)
        e_value = min(2000.0, 0.4 + index * 0.03) if not ill else 1.2 * 2.4**ill
        metrics = [
            metric("failure", 0.012 + 0.03 * ill, 0.011, e_value, 6 + index * 2),
            metric("violation", 0.002 + 0.01 * ill, 0.002, 0.8, 6 + index * 2),
            metric("latency", 640 + 5 * index, 910.0, 0.3, 6 + index * 2),
            metric("cost", 0.00041, 0.0019, 0.2, 6 + index * 2),
        ]
        failed = e_value >= 714
        analysis = {
            "phase": "failed" if failed else "running",
            "why": f"{6 + index * 2} of 60 units on the candidate",
            "metrics": metrics,
        }
        await rollouts.transition(
            connection,
            rollout,
            state=state,
            step=max(0, stage - 1),
            weight=weight,
            analysis=analysis,
            step_started_at=now() - timedelta(seconds=40),
        )
        moved = await rollouts.find(connection, rollout_id)
        assert moved is not None
        await rollouts.record_measurement(connection, moved, analysis["phase"], metrics)
        if failed:
            return


async def _rolled_back(connection: Connection, releases: dict[str, str]) -> str:
    rollout_id = await rollouts.create(
        connection,
        use_case="story-teller",
        candidate_release_id=releases["bargain"],
        stable_release_id=releases["big"],
        plan=_plan(),
    )
    await _measured(connection, rollout_id, ill_from=10, count=24)
    arms = [
        ArmSetting(Arm.STABLE, releases["big"], 1.0),
        ArmSetting(Arm.CANDIDATE, releases["bargain"], 0.25),
    ]
    await _route(connection, "story-teller", arms, "step to 25 %", rollout_id)
    row = await rollouts.find(connection, rollout_id)
    assert row is not None
    reason = "failure: candidate 0.24, stable 0.011; all traffic went back to storyteller-large"
    await rollouts.transition(
        connection, row, state=RolloutState.ROLLED_BACK, reason=reason, ended_at=now(), weight=0.0
    )
    await _route(
        connection, "story-teller", [ArmSetting(Arm.STABLE, releases["big"], 1.0)], reason, rollout_id
    )
    for event in ("rollout.started", "rollout.step", "rollout.rolled_back"):
        await audit.append(
            connection,
            actor=f"rollout:{rollout_id}",
            event=event,
            subject=rollout_id,
            data={"use_case": "story-teller"},
        )
    for index in range(3):
        await interactions.record_incident(
            connection,
            use_case="story-teller",
            category="violent_crimes" if index else "hate",
            severity=Severity.HIGH if index else Severity.CRITICAL,
            summary="Output of a live answer stopped: violent_crimes",
            intervention="blocked",
            rollout_id=rollout_id,
            release_id=releases["bargain"],
            interaction_id=f"req_bad{index}",
        )
    return rollout_id


async def _running(connection: Connection, releases: dict[str, str]) -> str:
    rollout_id = await rollouts.create(
        connection,
        use_case="story-teller",
        candidate_release_id=releases["swift"],
        stable_release_id=releases["big"],
        plan=_plan(),
    )
    await _measured(connection, rollout_id, ill_from=100, count=18)
    arms = [ArmSetting(Arm.STABLE, releases["big"], 1.0), ArmSetting(Arm.CANDIDATE, releases["swift"], 0.5)]
    await _route(connection, "story-teller", arms, "step to 50 %", rollout_id)
    for event in ("rollout.started", "rollout.step"):
        await audit.append(
            connection,
            actor=f"rollout:{rollout_id}",
            event=event,
            subject=rollout_id,
            data={"use_case": "story-teller"},
        )
    return rollout_id


async def _evaluation(connection: Connection, releases: dict[str, str], offering: str) -> str:
    evaluation_id = new_id("ev")
    await evaluations.create(
        connection,
        evaluation_id=evaluation_id,
        use_case="story-teller",
        candidate_release_id=releases["swift"],
        stable_release_id=releases["big"],
        offering_id=offering,
        suite_digest="0" * 64,
    )
    cases = [
        {
            "case_id": name,
            "origin": "suite",
            "messages": [{"role": "user", "content": f"Tell a story about {name}."}],
            "checks": [{"contains": name}],
        }
        for name in ("hedgehog", "otter", "fox", "badger", "penguin")
    ]
    await evaluations.plan_cases(connection, evaluation_id, cases)
    for index, case in enumerate(await evaluations.list_cases(connection, evaluation_id)):
        bad = index == 2
        await evaluations.record_case(
            connection,
            case.id,
            evaluation_id,
            stable_text=f"Once upon a time a brave {case.case_id} found a lantern on the hill. The end.",
            candidate_text=HOSTILE
            if bad
            else f"Once upon a time a small {case.case_id} found a lantern by the sea. The end.",
            stable_result={"passed": True, "failed_checks": []},
            candidate_result={
                "passed": not bad,
                "failed_checks": [f"contains: {case.case_id}"] if bad else [],
            },
            agrees=not bad,
            lexical_similarity=0.1 if bad else 0.9,
            stable_latency_ms=912.0,
            candidate_latency_ms=633.0,
            stable_cost_usd=Decimal("0.0019"),
            candidate_cost_usd=Decimal("0.0004"),
        )
    summary = {
        "cases": 5,
        "similarity": 0.97,
        "safety": 1.0,
        "pass_rate_candidate": 0.98,
        "pass_rate_stable": 0.985,
    }
    await evaluations.finish(
        connection,
        evaluation_id,
        status=EvaluationStatus.PASSED,
        summary=summary,
        reason="Passed: as good as stable within the margin, and every answer was safe.",
    )
    await deployments.bind_evaluation(connection, releases["swift"], evaluation_id)
    return evaluation_id


async def _ranking(connection: Connection, offerings: dict[str, str], evaluation: str) -> None:
    def candidate(
        name: str, provider: str, model: str, cost: float, saving: float, measured: bool
    ) -> dict[str, Any]:
        return {
            "offering_id": offerings[name],
            "provider": provider,
            "model": model,
            "cost_per_request_usd": cost,
            "cost_per_solved_usd": cost / 0.95,
            "saving_share": saving,
            "expected_monthly_saving_usd": 120.0,
            "quality": {
                "kind": "measured" if measured else "prior",
                "mean": 0.95,
                "lower_bound": 0.91 if measured else 0.42,
                "passes": 49,
                "cases": 50,
            },
            "list": "deployable" if measured else "worth_measuring",
            "evaluation_id": evaluation if measured else None,
            "release_id": None,
            "why": f"Costs ${cost:.6f} a request, {saving:.0%} less than what serves now.",
        }

    await registry.save_ranking(
        connection,
        ranking_id=new_id("rank"),
        use_case="story-teller",
        stable_offering=offerings["big"],
        profile={"prompt_tokens": 300, "completion_tokens": 200},
        candidates=[
            candidate("bargain", "bargain", "bargain-mini", 0.00011, 0.96, False),
            candidate("swift", "swift", "swift-2", 0.00066, 0.76, True),
            candidate("hostile", "swift", HOSTILE, 0.0009, 0.6, False),
        ],
        excluded={
            "counts": {"not_reachable": 118, "price_unknown": 2},
            "examples": {
                "not_reachable": [
                    {"offering_id": "off_1", "name": "vendor-1/model-001", "why": "no provider is configured"}
                ],
                "price_unknown": [{"offering_id": "off_2", "name": HOSTILE, "why": "its price is not known"}],
            },
        },
    )


async def _traffic(database: Database, releases: dict[str, str], running: str, rolled_back: str) -> None:
    moment = now()

    def row(index: int, use_case: str, **changes: Any) -> dict[str, Any]:
        candidate = use_case == "story-teller" and index % 3 == 0
        return {
            "id": new_id("req"),
            "at": moment - timedelta(seconds=20 * index),
            "kind": "live",
            "use_case": use_case,
            "arm": "candidate" if candidate else "stable",
            "release_id": releases["swift" if candidate else "big"],
            "rollout_id": running if candidate else None,
            "unit": f"conv-{index % 40}",
            "stream": index % 2 == 0,
            "response_text": "Once upon a time there was a brave hedgehog named Pip who carried a lantern.",
            "status": "error" if index % 70 == 13 else "ok",
            "error_message": "upstream timed out" if index % 70 == 13 else None,
            "prompt_tokens": 290,
            "completion_tokens": 210,
            "cost_usd": Decimal("0.0028"),
            "latency_ms": 620 + (index * 37) % 700,
            "findings": None,
            **changes,
        }

    batch = [row(index, "story-teller") for index in range(160)]
    batch += [row(index, "support-triage") for index in range(60)]
    batch += [
        row(
            index,
            "story-teller",
            id=f"req_bad{index}",
            status="blocked",
            response_text=HOSTILE,
            rollout_id=rolled_back,
        )
        for index in range(3)
    ]
    await interactions.copy_batch(database, batch)


async def _proposals(database: Database, policy: Policy, releases: dict[str, str]) -> tuple[str, str]:
    async with database.transaction() as connection:
        cycle = new_id("cyc")
        await decisions.start_cycle(connection, cycle, "timer")
        await decisions.update_cycle(
            connection,
            cycle,
            ended_at=now(),
            planner="rules",
            signals=[{"kind": "candidate_proven"}],
            summary="1 signal, 1 action: deploy swift-2 for story-teller.",
        )
    arguments = {"use_case": "support-triage", "release_id": releases["swift"]}
    ids = []
    for proposer in ("agent", "user:anna"):
        filed = await propose(
            database,
            policy,
            tool="deploy",
            arguments={**arguments, "use_case": "story-teller"},
            proposer=proposer,
            reason=f"swift-2 passed its evaluation and costs 76 % less. {HOSTILE}",
            cycle_id=cycle,
        )
        async with database.transaction() as connection:
            verdict = {
                **(filed.verdict or {}),
                "outcome": "require_approval",
                "approvals_needed": 1,
                "roles": ["approver", "admin"],
            }
            await proposals.update_proposal(
                connection,
                filed.id,
                status="waiting",
                waiting_since=now() - timedelta(minutes=7),
                verdict=verdict,
                policy_digest=policy.digest,
                state_digest="1" * 64,
            )
            await decisions.record(
                connection,
                actor=proposer,
                reason="swift-2 is proven and cheaper, so it is worth the traffic.",
                signals=[
                    {
                        "kind": "candidate_proven",
                        "sentence": "swift-2 passed its evaluation and costs 76 % less.",
                    }
                ],
                alternatives=[{"tool": "test", "model": "bargain-mini", "reason": "never measured here"}],
                action={"tool": "deploy", "arguments": filed.arguments},
                prediction={"saving_share": 0.76},
                verdict=verdict,
                cycle_id=cycle,
                proposal_id=filed.id,
                use_case="story-teller",
            )
            await audit.append(
                connection, actor="worker", event="proposal.waiting", subject=filed.id, data={}
            )
            await chat.append(connection, thread_id="other", author="agent", role="agent", content="x")
        ids.append(filed.id)
    return ids[0], ids[1]
