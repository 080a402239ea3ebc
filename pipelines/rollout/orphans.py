"""Rollouts that nobody watches any more: their run has ended, and they have not.

A run that broke for good leaves its rollout where it stood, with a candidate that answers users and nobody
who looks at it. Such a rollout gives all traffic back to stable. It is ended as aborted, since nothing was
proven against the candidate, and leaves an incident for a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from pipelines.context import Context
from pipelines.rollout import ending
from pipelines.rollout.next_action import Action
from storage import evaluations, interactions, rollouts
from storage.database import Connection, DatabaseUnavailable
from storage.rollouts import Rollout
from storage.vocabulary import Severity

log = logging.getLogger(__name__)

_WHY = "the run that watched it has ended, and nobody looked at the candidate any more"
_SECONDS = 5.0


async def watch(context: Context, stop: asyncio.Event) -> None:
    """End orphans until told to stop. Several workers may: each rollout ends once."""
    while not stop.is_set():
        try:
            await end_orphans(context)
        except DatabaseUnavailable as error:
            log.warning("could not look for orphaned rollouts: %s", error)
        except Exception:
            log.exception("orphaned rollouts could not be ended, trying again")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _SECONDS)


async def end_orphans(context: Context) -> list[str]:
    """Give traffic back to stable wherever nobody watches; the ids of the rollouts that this ended."""
    async with context.database.transaction() as connection:
        await evaluations.close_orphans(connection, "its run has ended before it was judged")
        found = await rollouts.orphans(connection)
    ended = []
    for each in found:
        async with context.database.transaction() as connection:
            current = await rollouts.find(connection, each.id, lock=True)
            if current is not None and current.ended_at is None:
                await _end(connection, context, current)
                ended.append(current.id)
    return ended


async def _end(connection: Connection, context: Context, rollout: Rollout) -> None:
    log.error("%s: %s", rollout.id, _WHY)
    await ending.end(connection, context.policy, rollout, Action.ABORT, None, because=_WHY)
    await interactions.record_incident(
        connection,
        use_case=rollout.use_case,
        category="rollout_orphaned",
        severity=Severity.HIGH,
        summary=f"The rollout {rollout.id} was aborted at {rollout.weight:.0%} of traffic: {_WHY}",
        intervention="aborted",
        release_id=rollout.candidate_release_id,
        rollout_id=rollout.id,
        details={"state": rollout.state, "proposal_id": rollout.proposal_id},
    )
