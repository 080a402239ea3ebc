"""A worker for the engine's crash tests: three steps, of which one waits until a file says go on."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.context import Context, Run
from pipelines.engine import Engine
from storage.database import Database
from tests.factories import demo_policy


async def main(url: str, executor: str, directory: Path) -> None:
    async def note(name: str) -> str:
        with (directory / "notes").open("a") as file:
            file.write(f"{name} {executor}\n")
        return name

    async def gated() -> str:
        await note("gated")
        while not (directory / "go").exists():
            await asyncio.sleep(0.02)
        return "gated"

    async def pipeline(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
        first = await run.step("first", lambda: note("first"))
        second = await run.step("gated", gated)
        await run.sleep(0.01)
        third = await run.step("third", lambda: note("third"))
        return {"steps": [first, second, third]}

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    database = Database(url, pool_size=2)
    context = Context(database=database, policy=demo_policy(), gateway_url="", gateway_key="")
    engine = Engine(context, {"scan": pipeline}, executor)
    await engine.start()
    print("ready", flush=True)
    try:
        await engine.watch(stop, interval=0.2)
    finally:
        await engine.stop()
        await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
