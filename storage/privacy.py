"""What is known of a person is removed: all of it when they ask, the rest when its time is over.

Works through what the gateway has logged and what was copied from it into evaluations. Incidents stay,
without the link to what they were found in: they hold no words of anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import is_one_of
from storage.tables.evidence import evaluation_cases, evaluations
from storage.tables.fleet import rollouts
from storage.tables.traffic import feedback, incidents, interactions
from storage.vocabulary import InteractionKind

#: So many rows are removed by one statement, that none takes long.
_BATCH = 1000
_CLOCKS_DIFFER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Erased:
    """How much was removed; incidents have lost a link only."""

    interactions: int = 0
    feedback: int = 0
    incidents: int = 0
    evaluation_cases: int = 0

    def __add__(self, other: Erased) -> Erased:
        """Both together."""
        return Erased(
            self.interactions + other.interactions,
            self.feedback + other.feedback,
            self.incidents + other.incidents,
            self.evaluation_cases + other.evaluation_cases,
        )


async def erase_user(connection: AsyncConnection, *, user_id: str, raw: str | None) -> Erased:
    """Remove what a user said and was told, with shadow copies, replays, feedback and links to it.

    ``user_id`` is the pseudonym that is logged, ``raw`` the name itself, as older rows hold it. What
    gateways have not shipped yet is not here to be removed: ask again after that. The caller writes the
    audit, since only it knows who asked.
    """
    erased = Erased()
    while more := await erase_some(connection, user_id=user_id, raw=raw):
        erased += more
    return erased


async def erase_some(connection: AsyncConnection, *, user_id: str, raw: str | None) -> Erased | None:
    """One batch of what :func:`erase_user` removes, for a transaction of its own; None: nothing is left."""
    names = [user_id] if raw is None else [user_id, raw]
    ids = await _some(connection, is_one_of(interactions.c.user_id, names))
    if not ids:
        return None
    copies = await _all(connection, select(interactions.c.id).where(is_one_of(interactions.c.shadow_of, ids)))
    replays = await _erase_replays(connection, ids)
    erased = Erased(interactions=replays, evaluation_cases=await _erase_cases(connection, ids))
    return erased + await _erase(connection, [*ids, *copies])


async def expire(connection: AsyncConnection, *, use_case: str, before: datetime, limit: int) -> int:
    """Remove interactions of a use case that began before a moment, oldest first, and what hangs on them.

    Those that a rollout under way is judged by stay. Returns how many went: ``limit`` means there may be
    more. The caller writes the audit.
    """
    unfinished = select(rollouts.c.id).where(rollouts.c.ended_at.is_(None), rollouts.c.use_case == use_case)
    kept = interactions.c.rollout_id.is_not(None) & interactions.c.rollout_id.in_(unfinished)
    query = (
        select(interactions.c.id)
        .where(interactions.c.use_case == use_case, interactions.c.at < before, ~kept)
        .order_by(interactions.c.at)
    )
    gone = 0
    while gone < limit:
        ids = await _all(connection, query.limit(min(_BATCH, limit - gone)))
        if not ids:
            break
        await _erase_cases(connection, ids)
        gone += (await _erase(connection, ids)).interactions
    return gone


async def _erase(connection: AsyncConnection, ids: Sequence[str]) -> Erased:
    said = await connection.execute(delete(feedback).where(is_one_of(feedback.c.interaction_id, ids)))
    unlinked = await connection.execute(
        update(incidents).where(is_one_of(incidents.c.interaction_id, ids)).values(interaction_id=None)
    )
    gone = await connection.execute(delete(interactions).where(is_one_of(interactions.c.id, ids)))
    return Erased(gone.rowcount, said.rowcount, unlinked.rowcount)


async def _erase_replays(connection: AsyncConnection, ids: Sequence[str]) -> int:
    """The answers to what evaluations made of these interactions: only the question tells them."""
    case, of = evaluation_cases.c, evaluations.c
    query = (
        select(interactions.c.id)
        .join(evaluations, of.use_case == interactions.c.use_case)
        .join(evaluation_cases, case.evaluation_id == of.id)
        .where(
            _was_made_of(ids),
            interactions.c.kind == InteractionKind.EVALUATION,
            interactions.c.at >= of.created_at - _CLOCKS_DIFFER,
            interactions.c.request["messages"] == case.messages,
        )
        .distinct()
    )
    return (await _erase(connection, await _all(connection, query))).interactions


async def _erase_cases(connection: AsyncConnection, ids: Sequence[str]) -> int:
    return (await connection.execute(delete(evaluation_cases).where(_was_made_of(ids)))).rowcount


def _was_made_of(ids: Sequence[str]) -> ColumnElement[bool]:
    return (evaluation_cases.c.origin == "recorded") & is_one_of(evaluation_cases.c.case_id, ids)


async def _some(connection: AsyncConnection, condition: ColumnElement[bool]) -> list[str]:
    return await _all(connection, select(interactions.c.id).where(condition).limit(_BATCH))


async def _all(connection: AsyncConnection, query: Select[Any]) -> list[str]:
    return list((await connection.execute(query)).scalars())
