"""Evaluations of a candidate against the stable release, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.ids import new_id
from storage.rows import columns_for, load, load_optional
from storage.tables.evidence import evaluation_cases, evaluations
from storage.tables.governance import proposals
from storage.vocabulary import EvaluationStatus


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A candidate against the stable release on a suite and on recorded traffic."""

    id: str
    use_case: str
    candidate_release_id: str
    stable_release_id: str
    offering_id: str | None
    proposal_id: str | None
    suite_digest: str
    status: str
    cases_planned: int
    cases_done: int
    summary: dict[str, Any] | None
    reason: str | None
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """One case and what both made of it."""

    id: str
    evaluation_id: str
    case_id: str
    origin: str
    messages: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    stable_text: str | None
    candidate_text: str | None
    stable_result: dict[str, Any] | None
    candidate_result: dict[str, Any] | None
    agrees: bool | None
    lexical_similarity: float | None
    stable_latency_ms: float | None
    candidate_latency_ms: float | None
    stable_cost_usd: Decimal | None
    candidate_cost_usd: Decimal | None


async def create(connection: AsyncConnection, *, evaluation_id: str, **values: Any) -> None:
    """A running evaluation; the same id twice is the same evaluation."""
    statement = upsert(evaluations).values(
        id=evaluation_id, status=EvaluationStatus.RUNNING, created_at=clock.now(), **values
    )
    await connection.execute(statement.on_conflict_do_nothing(index_elements=["id"]))


async def plan_cases(
    connection: AsyncConnection, evaluation_id: str, cases: Sequence[Mapping[str, Any]]
) -> None:
    """Fix the cases once: {case_id, origin, messages, checks}. Planning again adds nothing."""
    known = (
        await connection.execute(
            select(func.count())
            .select_from(evaluation_cases)
            .where(evaluation_cases.c.evaluation_id == evaluation_id)
        )
    ).scalar_one()
    if known or not cases:
        return
    rows = [{"id": new_id("case"), "evaluation_id": evaluation_id, **case} for case in cases]
    await connection.execute(upsert(evaluation_cases), rows)
    await connection.execute(
        update(evaluations).where(evaluations.c.id == evaluation_id).values(cases_planned=len(rows))
    )


async def list_cases(connection: AsyncConnection, evaluation_id: str) -> list[EvaluationCase]:
    """The cases in the order in which they were planned."""
    query = (
        select(*columns_for(EvaluationCase, evaluation_cases))
        .where(evaluation_cases.c.evaluation_id == evaluation_id)
        .order_by(evaluation_cases.c.id)
    )
    return [load(EvaluationCase, row) for row in await connection.execute(query)]


async def record_case(
    connection: AsyncConnection, case_row_id: str, evaluation_id: str, **values: Any
) -> None:
    """Store what both made of one case; recording again overwrites and does not count twice."""
    # Cases are recorded side by side: without the lock each would count without the others.
    await connection.execute(
        select(evaluations.c.id).where(evaluations.c.id == evaluation_id).with_for_update()
    )
    await connection.execute(
        update(evaluation_cases).where(evaluation_cases.c.id == case_row_id).values(**values)
    )
    done = (
        select(func.count())
        .select_from(evaluation_cases)
        .where(
            evaluation_cases.c.evaluation_id == evaluation_id,
            evaluation_cases.c.candidate_result.is_not(None),
        )
        .scalar_subquery()
    )
    await connection.execute(
        update(evaluations).where(evaluations.c.id == evaluation_id).values(cases_done=done)
    )


async def finish(
    connection: AsyncConnection,
    evaluation_id: str,
    *,
    status: EvaluationStatus,
    summary: Mapping[str, Any],
    reason: str,
) -> None:
    """Close an evaluation with its result."""
    await connection.execute(
        update(evaluations)
        .where(evaluations.c.id == evaluation_id)
        .values(status=status, summary=dict(summary), reason=reason, ended_at=clock.now())
    )


async def close_orphans(connection: AsyncConnection, reason: str) -> int:
    """Close evaluations that are still running although their run has ended. Returns how many."""
    ended = select(proposals.c.id).where(proposals.c.ended_at.is_not(None))
    statement = (
        update(evaluations)
        .where(evaluations.c.status == EvaluationStatus.RUNNING, evaluations.c.proposal_id.in_(ended))
        .values(status=EvaluationStatus.ERROR, reason=reason, ended_at=clock.now())
    )
    return (await connection.execute(statement)).rowcount


async def find(connection: AsyncConnection, evaluation_id: str) -> Evaluation | None:
    """The evaluation of that id."""
    query = select(*columns_for(Evaluation, evaluations)).where(evaluations.c.id == evaluation_id)
    return load_optional(Evaluation, (await connection.execute(query)).first())


async def list_evaluations(
    connection: AsyncConnection, use_case: str | None = None, limit: int = 50
) -> list[Evaluation]:
    """Evaluations, newest first."""
    query = (
        select(*columns_for(Evaluation, evaluations)).order_by(evaluations.c.created_at.desc()).limit(limit)
    )
    if use_case is not None:
        query = query.where(evaluations.c.use_case == use_case)
    return [load(Evaluation, row) for row in await connection.execute(query)]
