"""Durable runs on DBOS Transact: the only import of it.

A run is a workflow whose id is the id of the proposal that it carries out, so that the same proposal can
never run twice. What each step returned is kept in PostgreSQL; a worker that dies is replaced by a restart
of itself, or by a peer that adopts its runs (see :class:`Engine`), and the run goes on after its last step.
Which pipeline belongs to which tool is said by whoever starts the worker; the engine knows none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from dbos import DBOS, DBOSClient, DBOSConfig
from dbos import DBOSPortableJSONSerializer as JsonSerializer

from pipelines.context import Context, PipelineError, Run
from storage import audit, decisions, proposals
from storage.database import (
    Connection,
    Database,
    DatabaseUnavailable,
    session_locks,
    sqlalchemy_url,
    storable,
)
from storage.proposals import Proposal
from storage.vocabulary import ProposalStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Work that carries out one tool: (run, arguments) -> outcome.
Pipeline = Callable[[Run, Mapping[str, Any]], Awaitable[dict[str, Any]]]

#: Bumped by hand when a pipeline's steps change; never the source's hash, which would strand every
#: paused rollout at each release.
VERSION = "1"
NAME = "meta-agent"
QUEUE = "actions"
WORKFLOW = "carry_out"
_POOL = 4
#: States of a run in which it ends without having closed its proposal.
_GIVEN_UP = ["ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_LONGEST_WAIT = 15.0  # seconds between two tries while the database is away


class _DurableRun:
    """The Run of this engine."""

    def __init__(self, run_id: str, context: Context) -> None:
        self._id = run_id
        self._context = context

    @property
    def id(self) -> str:
        return self._id

    @property
    def context(self) -> Context:
        return self._context

    async def step(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await DBOS.run_step_async({"name": name}, _patiently, work)
        except Exception:
            if _Registry.stopping:
                # The engine is being taken away under this run. It goes on in the next process: here it
                # must not take the loss for a fault of the pipeline and record a failure.
                await asyncio.Event().wait()
            raise

    async def sleep(self, seconds: float) -> None:
        await DBOS.sleep_async(seconds)


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Database away: no reason to give up a run. Anything else is the pipeline's affair."""
    delay = 0.5
    while True:
        try:
            return await work()
        except DatabaseUnavailable as error:
            log.warning("the database is away, trying again in %.1f s: %s", delay, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_WAIT)


class _Registry:
    """What the workflow looks up: DBOS registers functions per process, not per object."""

    context: Context | None = None
    pipelines: Mapping[str, Pipeline] = {}
    stopping = False


# A worker that dies again and again must not make its runs count as broken: no limit of recoveries.
@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
async def _carry_out(proposal_id: str) -> dict[str, Any]:
    context = _Registry.context
    if context is None:
        raise RuntimeError("the engine has not been started in this process")
    run = _DurableRun(proposal_id, context)
    proposal = await run.step("read", lambda: _read(context.database, proposal_id))
    pipeline = _Registry.pipelines.get(proposal["tool"])
    try:
        if pipeline is None:
            raise PipelineError(f"this worker knows no pipeline for the tool {proposal['tool']}")
        outcome = await pipeline(run, proposal["arguments"])
    except PipelineError as error:
        message = storable(str(error))
        await run.step("failed", lambda: _finish(context.database, proposal_id, False, {}, message))
        return {"error": message}
    except Exception as error:
        log.exception("the run of %s broke", proposal_id)
        broken = storable(f"{type(error).__name__}: {error}")
        await run.step("failed", lambda: _finish(context.database, proposal_id, False, {}, broken))
        return {"error": broken}
    succeeded = bool(outcome.get("succeeded", True))
    reason = None if succeeded else str(outcome.get("reason", "the run did not reach its goal"))
    await run.step("finished", lambda: _finish(context.database, proposal_id, succeeded, outcome, reason))
    return outcome


async def _read(database: Database, proposal_id: str) -> dict[str, Any]:
    async with database.connection() as connection:
        proposal = await proposals.find(connection, proposal_id)
    if proposal is None:
        raise RuntimeError(f"there is no proposal {proposal_id}")
    return {"tool": proposal.tool, "arguments": proposal.arguments}


async def _finish(
    database: Database, proposal_id: str, succeeded: bool, outcome: dict[str, Any], error: str | None
) -> bool:
    async with database.transaction() as connection:
        proposal = await proposals.find(connection, proposal_id, lock=True)
        if proposal is None or proposal.ended_at is not None:
            return False
        await proposals.finish(connection, proposal_id, succeeded=succeeded, outcome=outcome, error=error)
        await decisions.set_for_proposal(
            connection, proposal_id, outcome={**outcome, "succeeded": succeeded, "error": error}
        )
        await audit.append(
            connection,
            actor=f"run:{proposal_id}",
            event="action.finished",
            subject=proposal_id,
            data={
                "tool": proposal.tool,
                "use_case": proposal.use_case,
                "succeeded": succeeded,
                "error": error,
            },
        )
    return True


class Starter:
    """Puts runs into the queue, in the caller's transaction."""

    def __init__(self, url: str) -> None:
        self._client = DBOSClient(system_database_url=sqlalchemy_url(url), serializer=JsonSerializer())

    async def enqueue(self, connection: Connection, proposal: Proposal) -> str:
        """Start the run of a proposal when this transaction commits; returns the run's id."""
        options: Any = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": proposal.id,
            "app_version": VERSION,
        }
        await connection.run_sync(
            lambda plain: self._client.enqueue_in_transaction(plain, options, proposal.id)
        )
        return proposal.id

    def close(self) -> None:
        """Close the client's connections."""
        self._client.destroy()


def prepare(url: str) -> None:
    """Create or migrate the engine's own tables (schema ``dbos``); done with the other migrations."""
    DBOS(config=_config(url, "migration"))
    try:
        DBOS.launch()
    finally:
        DBOS.destroy()


def _config(url: str, executor_id: str) -> DBOSConfig:
    return {
        "name": NAME,
        "system_database_url": sqlalchemy_url(url),
        "application_version": VERSION,
        "executor_id": executor_id,
        "sys_db_pool_size": _POOL,
        "serializer": JsonSerializer(),
        "log_level": "WARNING",
        "scheduler_polling_interval_sec": 3600.0,
    }


def _executor_lock(executor_id: str) -> str:
    return f"dbos-executor:{executor_id}"


class EngineLostError(RuntimeError):
    """This worker no longer holds its executor's lock: a peer may have adopted its runs, so it must stop."""


class Engine:
    """Carries out runs in this process, and adopts the runs of workers that died.

    Every worker holds a session lock of its executor id. A worker that finds pending runs of an executor
    whose lock is free knows that its owner is gone, and resumes them. When the connection that holds the
    lock breaks, a peer may do the same to this worker: :meth:`watch` then raises, and the process must end.
    """

    def __init__(self, context: Context, pipelines: Mapping[str, Pipeline], executor_id: str) -> None:
        self.context = context
        self.executor_id = executor_id
        self._pipelines = pipelines
        self._held = contextlib.AsyncExitStack()
        self._locks: Any = None

    async def start(self) -> None:
        """Begin carrying out runs. Raises RuntimeError if another process uses this executor id."""
        self._locks = await self._held.enter_async_context(session_locks(self.context.database))
        if not await self._locks.try_lock(_executor_lock(self.executor_id)):
            await self._held.aclose()
            raise RuntimeError(
                f"another worker is running as {self.executor_id}; give this one another id (worker.id)"
            )
        _Registry.context, _Registry.pipelines = self.context, self._pipelines
        _Registry.stopping = False
        DBOS(config=_config(self.context.database.url, self.executor_id))
        DBOS.launch()
        await DBOS.register_queue_async(QUEUE, worker_concurrency=16, polling_interval_sec=0.5)

    async def watch(self, stop: asyncio.Event, interval: float = 1.0) -> None:
        """Adopt dead peers' runs until told to stop. Raises :class:`EngineLostError`."""
        while not stop.is_set():
            try:
                await self._adopt()
                await self._settle_broken()
            except EngineLostError:
                raise
            except Exception as error:
                if not await self._locks.alive():
                    raise EngineLostError(
                        f"the connection that holds {self.executor_id} broke: {error}"
                    ) from error
                log.warning("could not look for orphaned runs: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), interval)

    async def _adopt(self) -> None:
        if not await self._locks.alive():
            raise EngineLostError(f"the connection that holds {self.executor_id} broke")
        for executor in await self._owners() - {self.executor_id}:
            lock = _executor_lock(executor)
            if not await self._locks.try_lock(lock):
                continue
            try:
                orphans = [each.workflow_id for each in await self._pending() if each.executor_id == executor]
                if orphans:
                    log.warning("adopting %d runs of %s, which is gone", len(orphans), executor)
                    await DBOS.resume_workflows_async(orphans)
            finally:
                await self._locks.unlock(lock)

    async def _settle_broken(self) -> None:
        """Close proposals whose runs the engine itself gave up: nothing else would ever end them."""
        async with self.context.database.connection() as connection:
            running = await proposals.list_proposals(
                connection, statuses=[ProposalStatus.EXECUTING], limit=1000
            )
        if not running:
            return
        broken = await DBOS.list_workflows_async(
            workflow_ids=[each.id for each in running], status=_GIVEN_UP, load_input=False, load_output=False
        )
        for each in broken:
            log.error("the engine gave up the run of %s (%s)", each.workflow_id, each.status)
            why = f"the engine gave this run up ({each.status})"
            await _finish(self.context.database, each.workflow_id, False, {}, why)

    async def _owners(self) -> set[str]:
        return {each.executor_id for each in await self._pending() if each.executor_id}

    async def _pending(self) -> list[Any]:
        return list(
            await DBOS.list_workflows_async(
                status="PENDING", app_version=VERSION, load_input=False, load_output=False
            )
        )

    async def stop(self) -> None:
        """Stop taking runs; what is under way goes on in the next process."""
        _Registry.stopping = True
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
        await self._held.aclose()
