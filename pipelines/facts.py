"""From rows to the facts that policy judges. Nothing here comes from whoever proposes.

A fact that cannot be found stays unknown, and policy denies what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pipelines.rollout import health
from pipelines.rollout.plan import RolloutPlan
from policies.facts import NEVER_HOURS, Facts
from storage import (
    clock,
    deployments,
    evaluations,
    flags,
    interactions,
    proposals,
    registry,
    rollouts,
    routes,
    use_cases,
)
from storage.database import Connection
from storage.deployments import ServedRelease
from storage.digests import digest
from storage.proposals import Proposal
from storage.use_cases import UseCase
from storage.vocabulary import Arm, EvaluationStatus, ProposalStatus, Risk, RolloutState

#: Tokens per request assumed for a use case without traffic of its own: (prompt, completion).
ASSUMED_TOKENS = (300.0, 200.0)
_RECORDED_CASES = 30


@dataclass(frozen=True, slots=True)
class Gathered:
    """The facts of a proposal, and the digest of the state that an approval of it binds."""

    facts: Facts
    state_digest: str


async def use_case_of(connection: Connection, arguments: Mapping[str, Any]) -> str | None:
    """The use case that arguments speak of, directly or by a rollout."""
    if "use_case" in arguments:
        return str(arguments["use_case"])
    if "rollout_id" in arguments:
        rollout = await rollouts.find(connection, str(arguments["rollout_id"]))
        return rollout.use_case if rollout else None
    return None


async def gather(connection: Connection, proposal: Proposal) -> Gathered:
    """Look up everything that the rules for this proposal's tool may ask for."""
    now = clock.now()
    use_case = await use_cases.find(connection, proposal.use_case) if proposal.use_case else None
    known: dict[str, Any] = {
        "now": now,
        "use_case": proposal.use_case or "",
        # A tool that concerns no use case is judged as the riskiest one would be.
        "risk": Risk(use_case.risk) if use_case else Risk.HIGH,
        "proposer_is_agent": proposal.proposer == "agent",
        "agent_paused": bool(await flags.get(connection, flags.AGENT_PAUSED, False)),
        "actions_last_day": await proposals.count_executed(
            connection, tool=proposal.tool, since=now - timedelta(days=1), use_case=proposal.use_case
        ),
    }
    state: dict[str, Any] = {}
    if use_case is not None:
        known |= await _money(connection, proposal, use_case, now)
        more, state = await _about(connection, proposal, use_case, now)
        known |= more
    return Gathered(Facts(**known), digest(state))


async def _money(
    connection: Connection, proposal: Proposal, use_case: UseCase, now: datetime
) -> dict[str, Any]:
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    running = await proposals.list_proposals(
        connection, statuses=[ProposalStatus.EXECUTING], use_case=use_case.name, limit=1000
    )
    reserved = [
        await _expected_cost(connection, each, use_case, now) for each in running if each.id != proposal.id
    ]
    return {
        "spend_month_usd": float(await interactions.spend(connection, since=month, use_case=use_case.name)),
        # One that is not known makes the sum unknown, and what is unknown is denied.
        "reserved_usd": None if None in reserved else sum(cost or 0.0 for cost in reserved),
        "expected_cost_usd": await _expected_cost(connection, proposal, use_case, now),
        "budget_usd_month": use_case.budget_usd_per_month,
    }


async def _expected_cost(
    connection: Connection, proposal: Proposal, use_case: UseCase, now: datetime
) -> float | None:
    """An upper bound in USD of what an action adds: evaluation calls, or shadow copies. None: unknown."""
    if proposal.tool not in ("test", "deploy"):
        return 0.0
    stable = await _stable(connection, use_case.name)
    recent = await interactions.health(connection, since=now - timedelta(days=7), use_case=use_case.name)
    tokens = (recent.prompt_tokens, recent.completion_tokens) if recent.requests else ASSUMED_TOKENS
    if proposal.tool == "test":
        offering = await registry.find_offering(connection, str(proposal.arguments["offering_id"]))
        if (
            offering is None
            or offering.price_input is None
            or offering.price_output is None
            or stable is None
        ):
            return None
        per_case = tokens[0] * float(offering.price_input + stable.price_input)
        per_case += tokens[1] * float(offering.price_output + stable.price_output)
        return per_case * (len((use_case.suite or {}).get("cases", [])) + _RECORDED_CASES)
    candidate = await deployments.find_release(connection, str(proposal.arguments["release_id"]))
    if candidate is None:
        return None
    try:
        shadow = RolloutPlan.from_json(use_case.rollout_plan).shadow
    except (TypeError, ValueError):
        return None  # a plan that cannot be read costs who knows what, and policy denies that
    copies = shadow.min_pairs if shadow else 0
    return copies * (tokens[0] * float(candidate.price_input) + tokens[1] * float(candidate.price_output))


async def _stable(connection: Connection, use_case: str) -> ServedRelease | None:
    route = await routes.current_route(connection, use_case)
    release_id = route.release_of(Arm.STABLE) if route else None
    return await deployments.find_release(connection, release_id) if release_id else None


async def _about(
    connection: Connection, proposal: Proposal, use_case: UseCase, now: datetime
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What only some tools ask for, and the state that an approval binds."""
    stable = await _stable(connection, use_case.name)
    known = await _calm(connection, proposal, use_case.name, now)
    state: dict[str, Any] = {"stable": stable.id if stable else None}
    if proposal.tool == "deploy":
        release_id = str(proposal.arguments["release_id"])
        more, evidence = await _candidate(
            connection, use_case.name, release_id, stable.id if stable else None, now
        )
        known, state = known | more, state | evidence
    if proposal.tool == "rollback" and stable is not None:
        target = await deployments.previous_stable(connection, use_case.name, than=stable.id)
        alert = await health.find_alert(connection, use_case.name, stable.id, now)
        known |= {"target_known_good": target is not None, "alert_open": alert is not None}
        state |= {"target": target.id if target else None}
    if proposal.tool == "abort":
        rollout = await rollouts.find(connection, str(proposal.arguments["rollout_id"]))
        failed = bool(rollout and rollout.analysis.get("phase") == "failed")
        known |= {"rollout_active": bool(rollout and rollout.ended_at is None), "alert_open": failed}
        state |= {"rollout": rollout.id if rollout else None}
    return known, state


async def _calm(connection: Connection, proposal: Proposal, use_case: str, now: datetime) -> dict[str, Any]:
    past = await rollouts.list_rollouts(connection, use_case, limit=200)
    ended = [each for each in past if each.ended_at is not None]
    back = [each for each in ended if each.state == RolloutState.ROLLED_BACK]
    executed = await proposals.count_executed(
        connection, tool="rollback", since=now - timedelta(days=1), use_case=use_case
    )
    rejected = [
        each
        for each in await proposals.list_proposals(
            connection, statuses=[ProposalStatus.REJECTED], use_case=use_case, tool=proposal.tool, limit=200
        )
        if each.arguments_digest == proposal.arguments_digest
    ]
    return {
        "rollout_active": any(each.ended_at is None for each in past),
        "hours_since_last_rollout_ended": _hours(now, [each.ended_at for each in ended]),
        "hours_since_last_rollback": _hours(now, [each.ended_at for each in back]),
        "hours_since_rejection": _hours(now, [each.ended_at for each in rejected]),
        "rollbacks_last_day": executed
        + sum(each.ended_at is not None and each.ended_at > now - timedelta(days=1) for each in back),
    }


def _hours(now: datetime, moments: list[datetime | None]) -> float:
    known = [moment for moment in moments if moment is not None]
    # A clock that was set back must not make a fact negative.
    return max(0.0, (now - max(known)).total_seconds() / 3600) if known else NEVER_HOURS


async def _is_meta_model(connection: Connection, model: str) -> bool:
    """By the model's name: the same model through another provider is still the one that plans."""
    meta = str(await flags.get(connection, flags.META_MODEL) or "")
    return bool(meta) and meta.partition("/")[2].rpartition("/")[2] == model.rpartition("/")[2]


async def _candidate(
    connection: Connection, use_case: str, release_id: str, stable_id: str | None, now: datetime
) -> tuple[dict[str, Any], dict[str, Any]]:
    release = await deployments.find_release(connection, release_id)
    if release is None or release.use_case != use_case:
        return {}, {"release": None}
    known: dict[str, Any] = {
        "candidate_price_known": release.price_input > 0 and release.price_output > 0,
        "candidate_is_meta_model": await _is_meta_model(connection, release.model),
        "resulting_share": 1.0,
    }
    offering = await registry.find_offering(connection, release.offering_id) if release.offering_id else None
    if offering is not None and offering.retires_at is not None:
        known["candidate_retires_in_days"] = max(0.0, (offering.retires_at - now).total_seconds() / 86_400)
    evaluation = await evaluations.find(connection, release.evaluation_id) if release.evaluation_id else None
    state = {"release": release.id, "deployment": release.deployment_id, "evaluation": release.evaluation_id}
    # Measured against what no longer serves, it is evidence of nothing.
    compared = evaluation is not None and evaluation.stable_release_id == stable_id
    if evaluation is None or evaluation.candidate_release_id != release.id or not compared:
        return known, state
    summary = evaluation.summary or {}
    known |= {
        "evaluation_status": EvaluationStatus(evaluation.status),
        "evaluation_age_hours": _hours(now, [evaluation.ended_at]) if evaluation.ended_at else None,
        "evaluation_cases": summary.get("cases"),
        "similarity": summary.get("similarity"),
        "safety": summary.get("safety"),
        "pass_rate_candidate": summary.get("pass_rate_candidate"),
        "pass_rate_stable": summary.get("pass_rate_stable"),
    }
    return known, state | {"evaluation_status": evaluation.status}
