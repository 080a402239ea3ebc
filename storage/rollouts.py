"""Rollouts: one row each, moved on by compare-and-swap, so that two workers never take the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.ids import new_id
from storage.rows import columns_for, load, load_optional
from storage.tables.fleet import rollout_measurements, rollouts
from storage.tables.governance import proposals
from storage.vocabulary import RolloutState


class RolloutRunningError(RuntimeError):
    """The use case already has a rollout that has not ended."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The durable progression of a candidate."""

    id: str
    use_case: str
    candidate_release_id: str
    stable_release_id: str
    proposal_id: str | None
    state: str
    step: int  #: index into the plan's canary steps
    weight: float
    epoch: int  #: grows with every transition
    plan: dict[str, Any]
    analysis: dict[str, Any]
    reason: str | None
    requested: str | None
    resume_state: str | None
    created_at: datetime
    step_started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the analysis said at one moment."""

    id: int
    rollout_id: str
    at: datetime
    state: str
    step: int
    weight: float
    phase: str
    metrics: list[dict[str, Any]]


async def create(
    connection: AsyncConnection,
    *,
    use_case: str,
    candidate_release_id: str,
    stable_release_id: str,
    plan: Mapping[str, Any],
    proposal_id: str | None = None,
    rollout_id: str | None = None,
) -> str:
    """A planned rollout. Raises :class:`RolloutRunningError` if the use case has one under way."""
    rollout_id = rollout_id or new_id("ro")
    statement = insert(rollouts).values(
        id=rollout_id,
        use_case=use_case,
        candidate_release_id=candidate_release_id,
        stable_release_id=stable_release_id,
        proposal_id=proposal_id,
        state=RolloutState.PLANNED,
        plan=dict(plan),
        analysis={},
        created_at=clock.now(),
    )
    try:
        async with connection.begin_nested():
            await connection.execute(statement)
    except IntegrityError as error:
        raise RolloutRunningError(
            f"{use_case} already has a rollout under way; wait for it or abort it"
        ) from error
    return rollout_id


async def find(connection: AsyncConnection, rollout_id: str, *, lock: bool = False) -> Rollout | None:
    """The rollout of that id; locked until the end of the transaction if asked."""
    query = select(*columns_for(Rollout, rollouts)).where(rollouts.c.id == rollout_id)
    if lock:
        query = query.with_for_update()
    return load_optional(Rollout, (await connection.execute(query)).first())


async def active(connection: AsyncConnection, use_case: str) -> Rollout | None:
    """The rollout under way for a use case."""
    query = select(*columns_for(Rollout, rollouts)).where(
        rollouts.c.use_case == use_case, rollouts.c.ended_at.is_(None)
    )
    return load_optional(Rollout, (await connection.execute(query)).first())


async def list_rollouts(
    connection: AsyncConnection, use_case: str | None = None, limit: int = 50
) -> list[Rollout]:
    """Rollouts, newest first."""
    query = select(*columns_for(Rollout, rollouts)).order_by(rollouts.c.created_at.desc()).limit(limit)
    if use_case is not None:
        query = query.where(rollouts.c.use_case == use_case)
    return [load(Rollout, row) for row in await connection.execute(query)]


async def orphans(connection: AsyncConnection) -> list[Rollout]:
    """Rollouts under way that nobody watches: the run that carried them out has ended."""
    query = (
        select(*columns_for(Rollout, rollouts))
        .join(proposals, proposals.c.id == rollouts.c.proposal_id)
        .where(rollouts.c.ended_at.is_(None), proposals.c.ended_at.is_not(None))
    )
    return [load(Rollout, row) for row in await connection.execute(query)]


async def transition(connection: AsyncConnection, rollout: Rollout, **changes: Any) -> bool:
    """Move a rollout on, if it still stands where the caller read it. False: somebody else moved it."""
    statement = (
        update(rollouts)
        .where(rollouts.c.id == rollout.id, rollouts.c.epoch == rollout.epoch)
        .values(epoch=rollout.epoch + 1, **changes)
    )
    return (await connection.execute(statement)).rowcount == 1


async def request(connection: AsyncConnection, rollout_id: str, wish: str) -> bool:
    """Leave a person's wish (abort, pause, resume) for the run to take. False: it has ended.

    A later wish replaces an earlier one that was not taken yet, but nothing replaces an abort.
    """
    standing = rollouts.c.requested
    statement = (
        update(rollouts)
        .where(rollouts.c.id == rollout_id, rollouts.c.ended_at.is_(None))
        .values(requested=case((standing == "abort", standing), else_=wish))
    )
    return (await connection.execute(statement)).rowcount == 1


async def record_measurement(
    connection: AsyncConnection, rollout: Rollout, phase: str, metrics: Sequence[Mapping[str, Any]]
) -> None:
    """Keep what the analysis said, for the chart and for whoever asks later."""
    await connection.execute(
        insert(rollout_measurements).values(
            rollout_id=rollout.id,
            at=clock.now(),
            state=rollout.state,
            step=rollout.step,
            weight=rollout.weight,
            phase=phase,
            metrics=[dict(metric) for metric in metrics],
        )
    )


async def measurements(
    connection: AsyncConnection, rollout_id: str, after: int = 0, limit: int = 1000
) -> list[Measurement]:
    """Measurements, oldest first."""
    query = (
        select(*columns_for(Measurement, rollout_measurements))
        .where(rollout_measurements.c.rollout_id == rollout_id, rollout_measurements.c.id > after)
        .order_by(rollout_measurements.c.id)
        .limit(limit)
    )
    return [load(Measurement, row) for row in await connection.execute(query)]
