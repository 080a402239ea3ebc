"""Use cases, routes and rollouts, gathered from several tables into what a person asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from meta_agent.reading.models import (
    ArmRead,
    FleetRead,
    FleetRow,
    HealthRead,
    RolloutRead,
    RolloutStepRead,
    RouteAnswer,
    RouteRead,
    ServedRead,
    Totals,
)
from meta_agent.refusals import not_found
from storage import deployments, interactions, proposals, rollouts, routes, use_cases
from storage.clock import now
from storage.database import Connection
from storage.deployments import ServedRelease
from storage.interactions import Health
from storage.rollouts import Rollout
from storage.routes import RouteRow
from storage.use_cases import UseCase
from storage.vocabulary import Arm, ProposalStatus, RolloutState

#: What "now" means for health.
WINDOW = timedelta(hours=1)
#: Failure rates above which a use case counts as degraded and as failing.
DEGRADED, FAILING = 0.02, 0.10


def month_start(moment: datetime) -> datetime:
    """When the month of a budget began."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def condition(health: Health) -> str:
    """One word for the last hour."""
    rate = health.failure_rate
    if rate is None:
        return "idle"
    return "failing" if rate >= FAILING else "degraded" if rate >= DEGRADED else "healthy"


async def get_use_case(connection: Connection, name: str) -> UseCase:
    """The use case; refuses when there is none."""
    found = await use_cases.find(connection, name)
    if found is None:
        raise not_found("use case", name)
    return found


# --- releases by id -------------------------------------------------------------------


async def served(connection: Connection, release_ids: Iterable[str]) -> dict[str, ServedRelease]:
    """Releases by id, with what they call."""
    found = {each: await deployments.find_release(connection, each) for each in set(release_ids)}
    return {key: release for key, release in found.items() if release is not None}


def _served_read(release_id: str, known: Mapping[str, ServedRelease]) -> ServedRead:
    release = known.get(release_id)
    return ServedRead(
        release_id=release_id,
        provider=release.provider if release else "unknown",
        model=release.model if release else "unknown",
    )


# --- rollouts -------------------------------------------------------------------------


async def read_rollouts(connection: Connection, rows: Iterable[Rollout]) -> list[RolloutRead]:
    """Rollouts with the models behind their releases."""
    rows = list(rows)
    ids = {each for row in rows for each in (row.candidate_release_id, row.stable_release_id)}
    known = await served(connection, ids)
    return [_rollout_read(row, known) for row in rows]


async def get_rollout(connection: Connection, rollout_id: str) -> RolloutRead:
    """The rollout; refuses when there is none."""
    row = await rollouts.find(connection, rollout_id)
    if row is None:
        raise not_found("rollout", rollout_id)
    return (await read_rollouts(connection, [row]))[0]


def _rollout_read(row: Rollout, known: Mapping[str, ServedRelease]) -> RolloutRead:
    return RolloutRead(
        id=row.id,
        use_case=row.use_case,
        state=row.state,
        step=row.step,
        weight=row.weight,
        epoch=row.epoch,
        plan=row.plan,
        analysis=row.analysis or {},
        reason=row.reason,
        requested=row.requested,
        resume_state=row.resume_state,
        proposal_id=row.proposal_id,
        candidate=_served_read(row.candidate_release_id, known),
        stable=_served_read(row.stable_release_id, known),
        steps=rollout_steps(row),
        created_at=row.created_at,
        step_started_at=row.step_started_at,
        ended_at=row.ended_at,
    )


def rollout_steps(row: Rollout) -> list[RolloutStepRead]:
    """The plan's steps, each with how far the rollout got in it."""
    shadow, canary = row.plan.get("shadow"), row.plan.get("canary") or []
    steps = [
        RolloutStepRead(
            label=f"{float(each['weight']) * 100:g} %",
            weight=float(each["weight"]),
            status="ahead",
            needed=each.get("min_units"),
        )
        for each in canary
    ]
    if shadow:
        needed = shadow.get("min_pairs")
        steps.insert(0, RolloutStepRead(label="Shadow", weight=0.0, status="ahead", needed=needed))
    at = _position(row, bool(shadow))
    seen = _units_seen(row.analysis or {})
    return [
        step.model_copy(
            update={"status": _step_status(row, index, at), "seen": seen if index == at else None}
        )
        for index, step in enumerate(steps)
    ]


def _position(row: Rollout, has_shadow: bool) -> int:
    """Index of the step where the rollout stands or stood last; -1 before the first."""
    state = row.resume_state if row.state == RolloutState.PAUSED and row.resume_state else row.state
    if state == RolloutState.PLANNED:
        return -1
    if state == RolloutState.SHADOW:
        return 0
    if (
        row.state in (RolloutState.ROLLED_BACK, RolloutState.ABORTED)
        and has_shadow
        and not _reached_canary(row)
    ):
        return 0
    return row.step + has_shadow


def _reached_canary(row: Rollout) -> bool:
    return row.step > 0 or row.weight > 0 or row.resume_state == RolloutState.CANARY


def _step_status(row: Rollout, index: int, at: int) -> str:
    if row.state == RolloutState.PROMOTED or index < at:
        return "done"
    if index > at:
        return "ahead"
    words = {
        RolloutState.ROLLED_BACK: "failed",
        RolloutState.ABORTED: "failed",
        RolloutState.PAUSED: "paused",
    }
    return words.get(RolloutState(row.state), "current")


def _units_seen(analysis: Mapping[str, Any]) -> int | None:
    counts = [metric.get("units_candidate") for metric in analysis.get("metrics") or []]
    return max((int(each) for each in counts if each is not None), default=None)


# --- routes ---------------------------------------------------------------------------


async def read_route(connection: Connection, use_case: str, limit: int = 50) -> RouteAnswer:
    """The current route and its history, with the models behind the arms."""
    rows = await routes.route_history(connection, use_case, limit)
    known = await served(connection, {arm["release_id"] for row in rows for arm in row.arms})
    history = [_route_read(row, known) for row in rows]
    return RouteAnswer(current=history[0] if history else None, history=history)


def _route_read(row: RouteRow, known: Mapping[str, ServedRelease]) -> RouteRead:
    arms = [
        ArmRead(
            arm=arm["arm"],
            weight=float(arm["weight"]),
            release_id=arm["release_id"],
            provider=known[arm["release_id"]].provider if arm["release_id"] in known else None,
            model=known[arm["release_id"]].model if arm["release_id"] in known else None,
        )
        for arm in row.arms
    ]
    return RouteRead(
        use_case=row.use_case,
        version=row.version,
        revision=row.revision,
        assignment_unit=row.assignment_unit,
        rollout_id=row.rollout_id,
        arms=arms,
        reason=row.reason,
        created_by=row.created_by,
        created_at=row.created_at,
    )


# --- the overview ---------------------------------------------------------------------


async def read_fleet(connection: Connection) -> FleetRead:
    """Every use case at a glance, and the totals."""
    moment = now()
    known = await use_cases.list_all(connection)
    rows = [await _fleet_row(connection, each, moment) for each in known]
    whole = await interactions.health(connection, since=moment - WINDOW)
    waiting = await proposals.list_proposals(connection, statuses=[ProposalStatus.WAITING])
    incidents = await interactions.list_incidents(connection, since=moment - timedelta(days=1), limit=1000)
    budgets = [each.budget_usd_per_month for each in known if each.budget_usd_per_month is not None]
    totals = Totals(
        requests=whole.requests,
        failure_rate=whole.failure_rate,
        blocked=whole.blocked,
        p95_ms=whole.p95_ms,
        spend_hour_usd=_dollars(await interactions.spend(connection, since=moment - WINDOW)),
        spend_month_usd=_dollars(await interactions.spend(connection, since=month_start(moment))),
        budget_usd_per_month=sum(budgets) if budgets else None,
        incidents_day=len(incidents),
        approvals_waiting=len(waiting),
    )
    return FleetRead(rows=rows, totals=totals)


async def _fleet_row(connection: Connection, use_case: UseCase, moment: datetime) -> FleetRow:
    route = await routes.current_route(connection, use_case.name)
    stable_id = route.release_of(Arm.STABLE) if route else None
    known = await served(connection, [stable_id] if stable_id else [])
    health = await interactions.health(connection, since=moment - WINDOW, use_case=use_case.name)
    active = await rollouts.active(connection, use_case.name)
    spent = await interactions.spend(connection, since=month_start(moment), use_case=use_case.name)
    return FleetRow(
        use_case=use_case.name,
        risk=use_case.risk,
        condition=condition(health),
        stable=_served_read(stable_id, known) if stable_id else None,
        health=HealthRead.model_validate(health),
        spend_month_usd=_dollars(spent),
        budget_usd_per_month=use_case.budget_usd_per_month,
        rollout=(await read_rollouts(connection, [active]))[0] if active else None,
    )


def _dollars(amount: Decimal) -> float:
    return float(amount)
