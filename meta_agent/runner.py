"""The agent's loop in a worker: cycles by the clock and by events, proposals carried on as they change.

Rows are the truth. Threads only remember where a machine stood, notifications only shorten the wait, and
locks in the database keep one worker at a cycle and one worker at a proposal. A database that is away
is waited for. Knows nothing of what a tool does: durable runs belong to the pipelines' engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from meta_agent.graphs import threads
from meta_agent.graphs.world import World
from meta_agent.llm import build_chat_model
from meta_agent.planner import Planner
from meta_agent.planners.llm import LlmPlanner
from meta_agent.planners.rules import RulesPlanner
from meta_agent.settings import Settings
from pipelines.context import Context
from storage import clock, decisions, events, proposals
from storage.database import Database, DatabaseUnavailable, try_session_lock
from storage.ids import new_id
from storage.proposals import Proposal
from storage.vocabulary import ProposalStatus

log = logging.getLogger(__name__)

CYCLE_LOCK = "agent-cycle"
#: Events after which the world looks different enough for another cycle.
WAKING_EVENTS = frozenset(
    {
        "scan.finished",
        "ranking.finished",
        "evaluation.finished",
        "rollout.promoted",
        "rollout.rolled_back",
        "rollout.aborted",
        "action.finished",
        "agent.resumed",
    }
)
SWEEP_SECONDS = 1.0
#: Events come in bursts; one cycle answers all of a burst.
DEBOUNCE_SECONDS = 0.5
#: A proposal that waits is judged again this often although nobody spoke: policy or facts may have moved.
REJUDGE_SECONDS = 900.0
_LONGEST_BACKOFF = 30.0
_DRAIN_SECONDS = 8.0
_BUSY = "busy"


def build_planner(settings: Settings) -> Planner:
    """The planner that the settings ask for."""
    if settings.agent.chosen_planner == "llm":
        return LlmPlanner(settings.agent.model or "unnamed", lambda: build_chat_model(settings))
    return RulesPlanner()


@dataclass(frozen=True)
class _Looked:
    """What a proposal looked like when this process last carried it on."""

    status: str
    words: int
    at: float


class Agent:
    """The agent of one worker process."""

    def __init__(
        self, database: Database, context: Context, settings: Settings, planner: Planner | None = None
    ) -> None:
        self._world = World(database, context, settings, planner or build_planner(settings))
        self._database = database
        self._settings = settings
        self._prepared = False
        self._looked: dict[str, _Looked] = {}
        self._sweep_now = asyncio.Event()
        self._cycle_now = asyncio.Event()
        self._woken_by = "event"
        self._woken_at: datetime | None = None
        self._seen: int | None = None

    # --- cycles -----------------------------------------------------------------------

    async def run_cycle(self, trigger: str, unless_since: datetime | None = None) -> str | None:
        """One cycle, and before it whatever a dead process left unfinished.

        Returns the cycle's id, or None if another worker is at it, or began one since the moment given.
        """
        await self._prepare()
        async with try_session_lock(self._database, CYCLE_LOCK) as mine:
            if not mine:
                return None
            await self._finish_interrupted()
            async with self._database.transaction() as connection:
                last = await decisions.list_cycles(connection, limit=1)
                if last and unless_since is not None and last[0].started_at > unless_since:
                    return None
                cycle_id = new_id("cyc")
                await decisions.start_cycle(connection, cycle_id, trigger)
            await self._run_thread(cycle_id)
            return cycle_id

    async def _finish_interrupted(self) -> None:
        async with self._database.connection() as connection:
            interrupted = await decisions.unfinished_cycles(connection)
        for cycle in interrupted:
            log.warning("cycle %s was interrupted, going on with it", cycle.id)
            await self._run_thread(cycle.id)

    async def _run_thread(self, cycle_id: str) -> None:
        """Run a cycle to its end. One that cannot end is closed with its error and not tried for ever."""
        try:
            async with threads.open_threads(self._database) as saver:
                await threads.advance(
                    saver, "cycle", cycle_id, {"cycle_id": cycle_id}, self._world, again=True
                )
                await threads.forget_history(saver, cycle_id)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            log.exception("cycle %s broke", cycle_id)
            async with self._database.transaction() as connection:
                await decisions.update_cycle(
                    connection, cycle_id, ended_at=clock.now(), error=f"{type(error).__name__}: {error}"
                )

    # --- proposals --------------------------------------------------------------------

    async def tick_action(self, proposal_id: str) -> str:
        """Carry a proposal on as far as it goes now; "busy" if another worker is at it."""
        await self._prepare()
        async with try_session_lock(self._database, f"proposal:{proposal_id}") as mine:
            if not mine:
                return _BUSY
            async with self._database.connection() as connection:
                proposal = await proposals.find(connection, proposal_id)
            if proposal is None:
                raise LookupError(f"there is no proposal {proposal_id}")
            async with threads.open_threads(self._database) as saver:
                outcome = await threads.advance(
                    saver,
                    "action",
                    proposal_id,
                    {"proposal_id": proposal_id},
                    self._world,
                    again=proposal.status in (ProposalStatus.PROPOSED, ProposalStatus.WAITING),
                )
                await threads.forget_history(saver, proposal_id)
            return outcome or proposal.status

    async def sweep(self) -> None:
        """Carry on every proposal that has something to be carried on by."""
        async with self._database.connection() as connection:
            unfinished = await proposals.list_proposals(
                connection, statuses=[each for each in ProposalStatus if not each.is_final], limit=1000
            )
            words = {
                each.id: len(await proposals.list_approvals(connection, each.id))
                for each in unfinished
                if each.status == ProposalStatus.WAITING
            }
        self._looked = {each.id: self._looked[each.id] for each in unfinished if each.id in self._looked}
        for proposal in reversed(unfinished):
            spoken = words.get(proposal.id, 0)
            if self._is_due(proposal, spoken):
                await self._carry_on(proposal, spoken)

    def _is_due(self, proposal: Proposal, words: int) -> bool:
        before = self._looked.get(proposal.id)
        if before is None or proposal.status == ProposalStatus.PROPOSED:
            return True
        if proposal.status == ProposalStatus.EXECUTING:
            return False
        return (
            words != before.words
            or proposal.expires_at <= clock.now()
            or time.monotonic() - before.at >= REJUDGE_SECONDS
        )

    async def _carry_on(self, proposal: Proposal, words: int) -> None:
        try:
            outcome = await self.tick_action(proposal.id)
        except DatabaseUnavailable:
            raise
        except Exception:
            # One proposal that cannot be carried on must not hold up the others.
            log.exception("proposal %s could not be carried on", proposal.id)
            outcome = proposal.status
        if outcome != _BUSY:
            self._looked[proposal.id] = _Looked(outcome, words, time.monotonic())

    # --- the loop ---------------------------------------------------------------------

    async def serve(self, stop: asyncio.Event) -> None:
        """Cycle, sweep and listen until told to stop; then let the work in hand come to its end."""
        working = [
            asyncio.create_task(self._survive(stop, self._cycle_loop), name="agent-cycles"),
            asyncio.create_task(self._survive(stop, self._sweep_loop), name="agent-sweeper"),
        ]
        listening = asyncio.create_task(self._survive(stop, self._listen), name="agent-listener")
        try:
            await stop.wait()
            self._sweep_now.set()
            self._cycle_now.set()
            await asyncio.wait(working, timeout=_DRAIN_SECONDS)
        finally:
            for task in (*working, listening):
                task.cancel()
            await asyncio.gather(*working, listening, return_exceptions=True)

    async def _survive(self, stop: asyncio.Event, loop: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        delay = 0.5
        while not stop.is_set():
            began = time.monotonic()
            try:
                await loop(stop)
            except DatabaseUnavailable as error:
                log.warning("the database is away, trying again in %.1f s: %s", delay, error)
            except Exception:
                log.exception("the agent's loop broke, trying again in %.1f s", delay)
            if time.monotonic() - began > 2 * _LONGEST_BACKOFF:
                delay = 0.5
            await _wait(stop, delay)
            delay = min(delay * 2, _LONGEST_BACKOFF)

    async def _cycle_loop(self, stop: asyncio.Event) -> None:
        interval = self._settings.agent.interval_seconds
        trigger, unless_since = "start", None
        while not stop.is_set():
            await self.run_cycle(trigger, unless_since)
            self._sweep_now.set()
            if await _wait(self._cycle_now, interval):
                await _wait(stop, DEBOUNCE_SECONDS)
                self._cycle_now.clear()
                trigger, unless_since = self._woken_by, self._woken_at
            else:
                # Every worker has this clock; the fleet needs one cycle for each turn of it.
                trigger, unless_since = "timer", clock.now() - timedelta(seconds=0.9 * interval)

    async def _sweep_loop(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._sweep_now.clear()
            await self.sweep()
            await _wait(self._sweep_now, SWEEP_SECONDS)

    async def _listen(self, stop: asyncio.Event) -> None:
        if self._seen is None:
            async with self._database.connection() as connection:
                self._seen = await events.last_id(connection)
        notices = cast(
            "AsyncGenerator[tuple[str, str]]",
            self._database.listen(events.CHANNEL, proposals.CHANNEL),
        )
        async with contextlib.aclosing(notices):
            async for channel, _ in notices:
                if channel != events.CHANNEL:
                    self._sweep_now.set()
                if channel != proposals.CHANNEL:
                    await self._look_at_events(self._seen)

    async def _look_at_events(self, seen: int) -> None:
        async with self._database.connection() as connection:
            while fresh := await events.after(connection, seen):
                self._seen = seen = fresh[-1].id
                waking = [each for each in fresh if each.kind in WAKING_EVENTS]
                if waking:
                    self._woken_by, self._woken_at = f"event:{waking[-1].kind}", waking[-1].at
                    self._cycle_now.set()

    async def _prepare(self) -> None:
        if not self._prepared:
            await threads.prepare(self._database)
            self._prepared = True


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but not longer; whether it came."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
