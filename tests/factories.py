"""What tests build worlds from: a use case with a stable release, a tested candidate, and a context."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipelines.context import Context
from policies.loader import load_policy
from policies.policy import Policy
from storage import clock, deployments, evaluations, flags, registry, routes, use_cases
from storage.database import Connection, Database
from storage.ids import new_id
from storage.proposals import Proposal
from storage.routes import ArmSetting
from storage.vocabulary import Arm, AssignmentUnit, EvaluationStatus, Risk

ROOT = Path(__file__).parent.parent
DEMO_POLICY = ROOT / "examples" / "demo" / "policies.yaml"

GOOD = {
    "cases": 60,
    "similarity": 0.99,
    "safety": 1.0,
    "pass_rate_stable": 0.97,
    "pass_rate_candidate": 0.98,
}


@dataclass(frozen=True)
class World:
    """One use case, ready for a rollout."""

    use_case: str
    stable: str  #: release
    candidate: str  #: release, with a passed evaluation
    offering: str
    evaluation: str


async def make_world(
    db: Database,
    *,
    name: str = "story-teller",
    risk: Risk = Risk.MEDIUM,
    budget: float | None = 500.0,
    status: EvaluationStatus = EvaluationStatus.PASSED,
    summary: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
) -> World:
    """A use case served by lab/big, and thrift/small evaluated for it."""
    async with db.transaction() as connection:
        await flags.put(connection, flags.META_MODEL, None, "test")
        await use_cases.declare(
            connection, name=name, risk=risk, budget_usd_per_month=budget, rollout_plan=plan or {}
        )
        stable = await make_release(connection, name, "lab", "big", "0.000003", "0.000015")
        await deployments.mark_stable(connection, stable)
        await routes.set_route(
            connection,
            use_case=name,
            arms=[ArmSetting(Arm.STABLE, stable, 1.0)],
            assignment_unit=AssignmentUnit.CONVERSATION,
            reason="test",
            created_by="test",
        )
        offering = await make_offering(connection, "thrift", "small")
        candidate = await make_release(connection, name, "thrift", "small", "0.0000006", "0.000003", offering)
        evaluation = new_id("eval")
        await evaluations.create(
            connection,
            evaluation_id=evaluation,
            use_case=name,
            candidate_release_id=candidate,
            stable_release_id=stable,
            offering_id=offering,
            suite_digest="sha256:test",
        )
        await evaluations.finish(
            connection, evaluation, status=status, summary={**GOOD, **(summary or {})}, reason="test"
        )
        await deployments.bind_evaluation(connection, candidate, evaluation)
    return World(name, stable, candidate, offering, evaluation)


async def make_release(
    connection: Connection,
    use_case: str,
    provider: str,
    model: str,
    price_input: str,
    price_output: str,
    offering: str | None = None,
) -> str:
    """A release of a deployment of that model."""
    deployment = await deployments.ensure_deployment(
        connection,
        provider=provider,
        model=model,
        price_input=Decimal(price_input),
        price_output=Decimal(price_output),
        offering_id=offering,
    )
    return await deployments.create_release(
        connection, use_case=use_case, deployment_id=deployment, created_by="test"
    )


async def make_offering(connection: Connection, provider: str, model: str, **values: Any) -> str:
    """A reachable, priced offering; the one there is, if there is one."""
    known = await registry.find_by_model(connection, provider, model)
    if known is not None:
        return known.id
    moment = clock.now()
    row = {
        "source": provider,
        "external_id": model,
        "provider": provider,
        "model": model,
        "reachable": True,
        "price_input": Decimal("0.0000006"),
        "price_output": Decimal("0.000003"),
        "context_tokens": 128_000,
        "output_tokens": 8_000,
        "capabilities": ["streaming"],
        "lifecycle": "active",
        "retires_at": None,
        "payload_digest": "sha256:test",
        "payload": {},
        "first_seen_at": moment,
        "last_seen_at": moment,
    }
    return (await registry.insert_offerings(connection, [{**row, **values}]))[0]


def demo_policy() -> Policy:
    """The default rules without the waits."""
    return load_policy(DEMO_POLICY)


def make_context(db: Database, *, policy: Policy | None = None, started: list[str] | None = None) -> Context:
    """A context whose queue is a list of proposal ids."""

    async def enqueue(connection: Connection, proposal: Proposal) -> str:
        if started is not None:
            started.append(proposal.id)
        return proposal.id

    return Context(
        database=db,
        policy=policy or demo_policy(),
        gateway_url="http://127.0.0.1:9",
        gateway_key="unused",
        enqueue=enqueue,
        poll_seconds=0.05,
    )
