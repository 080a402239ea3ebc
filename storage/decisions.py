"""The agent's cycles and the decisions made in them, with what was predicted and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.ids import new_id
from storage.rows import columns_for, load, load_optional
from storage.tables.governance import cycles, decisions


@dataclass(frozen=True, slots=True)
class Cycle:
    """One turn of the agent: what it saw, and what it made of it."""

    id: str
    started_at: datetime
    ended_at: datetime | None
    trigger: str
    planner: str | None
    facts_digest: str | None
    facts: dict[str, Any] | None
    signals: list[dict[str, Any]] | None
    plan: dict[str, Any] | None
    summary: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Signal, alternatives, action, prediction and, later, what really happened."""

    id: str
    cycle_id: str | None
    proposal_id: str | None
    use_case: str | None
    at: datetime
    actor: str
    signals: list[dict[str, Any]]
    alternatives: list[dict[str, Any]]
    action: dict[str, Any] | None
    reason: str
    prediction: dict[str, Any] | None
    verdict: dict[str, Any] | None
    outcome: dict[str, Any] | None
    outcome_at: datetime | None


async def start_cycle(connection: AsyncConnection, cycle_id: str, trigger: str) -> None:
    """Open a cycle; the same id twice is the same cycle."""
    statement = upsert(cycles).values(id=cycle_id, started_at=clock.now(), trigger=trigger)
    await connection.execute(statement.on_conflict_do_nothing(index_elements=["id"]))


async def update_cycle(connection: AsyncConnection, cycle_id: str, **values: Any) -> None:
    """Add what a cycle found."""
    await connection.execute(update(cycles).where(cycles.c.id == cycle_id).values(**values))


async def find_cycle(connection: AsyncConnection, cycle_id: str) -> Cycle | None:
    """The cycle of that id."""
    query = select(*columns_for(Cycle, cycles)).where(cycles.c.id == cycle_id)
    return load_optional(Cycle, (await connection.execute(query)).first())


async def list_cycles(connection: AsyncConnection, limit: int = 50) -> list[Cycle]:
    """Cycles, newest first."""
    query = select(*columns_for(Cycle, cycles)).order_by(cycles.c.started_at.desc()).limit(limit)
    return [load(Cycle, row) for row in await connection.execute(query)]


async def record(
    connection: AsyncConnection,
    *,
    actor: str,
    reason: str,
    signals: Sequence[Mapping[str, Any]],
    alternatives: Sequence[Mapping[str, Any]] = (),
    action: Mapping[str, Any] | None = None,
    prediction: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
    cycle_id: str | None = None,
    proposal_id: str | None = None,
    use_case: str | None = None,
) -> str:
    """Keep a decision; returns its id."""
    decision_id = new_id("dec")
    await connection.execute(
        insert(decisions).values(
            id=decision_id,
            at=clock.now(),
            actor=actor,
            reason=reason,
            signals=[dict(each) for each in signals],
            alternatives=[dict(each) for each in alternatives],
            action=dict(action) if action is not None else None,
            prediction=dict(prediction) if prediction is not None else None,
            verdict=dict(verdict) if verdict is not None else None,
            cycle_id=cycle_id,
            proposal_id=proposal_id,
            use_case=use_case,
        )
    )
    return decision_id


async def set_for_proposal(connection: AsyncConnection, proposal_id: str, **values: Any) -> None:
    """Add the verdict or the realised outcome to the decision behind a proposal."""
    if "outcome" in values:
        values["outcome_at"] = clock.now()
    await connection.execute(update(decisions).where(decisions.c.proposal_id == proposal_id).values(**values))


async def list_decisions(
    connection: AsyncConnection,
    *,
    use_case: str | None = None,
    cycle_id: str | None = None,
    proposal_id: str | None = None,
    limit: int = 100,
) -> list[Decision]:
    """Decisions, newest first."""
    query = select(*columns_for(Decision, decisions)).order_by(decisions.c.at.desc()).limit(limit)
    wanted = {"use_case": use_case, "cycle_id": cycle_id, "proposal_id": proposal_id}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(decisions.c[name] == value)
    return [load(Decision, row) for row in await connection.execute(query)]


async def unfinished_cycles(connection: AsyncConnection, limit: int = 20) -> list[Cycle]:
    """Cycles that were interrupted, oldest first."""
    query = select(*columns_for(Cycle, cycles)).where(cycles.c.ended_at.is_(None))
    return [
        load(Cycle, row) for row in await connection.execute(query.order_by(cycles.c.started_at).limit(limit))
    ]


async def last_inaction(connection: AsyncConnection, actor: str, use_case: str | None) -> Decision | None:
    """The newest decision of an actor about a use case (None: the fleet), if it was to do nothing."""
    query = (
        select(*columns_for(Decision, decisions))
        .where(decisions.c.actor == actor, decisions.c.use_case.is_not_distinct_from(use_case))
        .order_by(decisions.c.at.desc())
        .limit(1)
    )
    decision = load_optional(Decision, (await connection.execute(query)).first())
    return decision if decision is not None and decision.action is None else None
