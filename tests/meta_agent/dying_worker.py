"""A worker that is killed just before its n-th write of a thread; one fork for each line on stdin.

Line: JSON {url, kill_at, cycle | proposal}. Answer: the child's signal number, or 0 if it lived to the end.
The node before the write has had its effect by then, so whoever goes on runs that node again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import policies
from meta_agent.runner import Agent
from meta_agent.settings import AgentSettings, Settings
from pipelines import engine
from pipelines.context import Context
from policies.loader import load_policy
from storage.database import Database


def die_at(write: int) -> None:
    """Arm the checkpointer."""
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    counted = 0
    for name in ("aput", "aput_writes"):
        original = getattr(AsyncPostgresSaver, name)

        async def deadly(self: Any, *args: Any, _original: Any = original, **options: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == write:
                os.kill(os.getpid(), signal.SIGKILL)
            return await _original(self, *args, **options)

        setattr(AsyncPostgresSaver, name, deadly)


async def work(order: dict[str, Any]) -> None:
    """Run one cycle, or carry one proposal on."""
    database = Database(order["url"])
    starter = engine.Starter(order["url"])
    context = Context(
        database=database,
        policy=load_policy(Path(policies.__file__).with_name("default.yaml")),
        gateway_url="http://127.0.0.1:9",
        gateway_key="none",
        enqueue=starter.enqueue,
    )
    agent = Agent(database, context, Settings(agent=AgentSettings(interval_seconds=60.0)))
    if "proposal" in order:
        await agent.tick_action(order["proposal"])
    else:
        await agent.run_cycle("test")


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                die_at(order["kill_at"])
                asyncio.run(work(order))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(-os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
