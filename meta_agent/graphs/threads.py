"""Threads: advancing one state machine, from wherever its last process left it.

A checkpointer is opened for a piece of work and not for the life of the process, so that a database that
went away and came back is met with a fresh connection. Callers hold the lock of the thread: the library
has none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import Command

from meta_agent.graphs.registry import CURRENT, builder
from meta_agent.graphs.world import World
from storage.database import Database, try_session_lock
from storage.threads import ensure_schema, threads_conninfo

#: The longest path through a machine is far shorter; a loop must not run on.
RECURSION_LIMIT = 40


async def prepare(database: Database) -> None:
    """Create or migrate the checkpointer's tables, one process at a time."""
    while True:
        async with try_session_lock(database, "agent-threads-setup") as mine:
            if mine:
                await ensure_schema(database)
                async with open_threads(database) as saver:
                    await saver.setup()
                return
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def open_threads(database: Database) -> AsyncIterator[AsyncPostgresSaver]:
    """A checkpointer on a connection of its own."""
    async with AsyncPostgresSaver.from_conn_string(threads_conninfo(database)) as saver:
        yield saver


async def advance(
    saver: AsyncPostgresSaver,
    kind: str,
    thread_id: str,
    first: Mapping[str, str],
    world: World,
    *,
    again: bool = False,
) -> str | None:
    """Run a thread until it ends or waits; begin it if it is new. Returns its last outcome.

    Only ``wait`` interrupts, so a thread that stands there is woken, and any other is continued. A thread
    that has ended stays so, unless the caller's own rows say that there is more to do (``again``).
    """
    version = await _version(saver, thread_id) or CURRENT[kind]
    config: RunnableConfig = {
        # Strict: an answer to a question that is no longer asked is an error and not a new answer.
        "configurable": {"thread_id": thread_id, "__pregel_strict_resume": True},
        "recursion_limit": RECURSION_LIMIT,
        "metadata": {"graph_version": version},
    }
    graph = builder(version)().compile(checkpointer=saver)
    before = await graph.aget_state(config)
    entry: Any = None
    if before.metadata is None or (again and not before.next):
        entry = dict(first)
    elif before.interrupts:
        entry = Command(resume={each.id: "wake" for each in before.interrupts})
    elif not before.next:
        return _outcome(before.values)
    state = await graph.ainvoke(entry, config, context=world, durability="sync")
    return _outcome(state)


def _outcome(state: Mapping[str, Any] | None) -> str | None:
    return None if state is None else state.get("outcome")


async def _version(saver: AsyncPostgresSaver, thread_id: str) -> str | None:
    found = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
    if found is None:
        return None
    version = found.metadata.get("graph_version")
    return version if isinstance(version, str) else None


async def forget_history(saver: AsyncPostgresSaver, thread_id: str) -> None:
    """Keep only where the thread stands; how it came there is in our own rows."""
    await saver.aprune([thread_id], strategy="keep_latest")
