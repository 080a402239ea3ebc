"""What one cycle of the agent costs: observe, assess, decide, record, on real PostgreSQL.

    python -m benchmarks.agent_cycle [--cycles 30]

Beside it the same facts and plan without the state machine (no checkpoints, no locks, no rows), to show
what durability costs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from meta_agent.monitors import observe
from meta_agent.planners.rules import RulesPlanner
from meta_agent.runner import Agent
from meta_agent.settings import Settings
from meta_agent.signals import assess
from storage import clock
from storage.database import Database
from storage.embedded import embedded_server
from storage.migrate import migrate
from tests.factories import make_context, make_world


async def measure(work: Callable[[], Awaitable[object]], times: int) -> tuple[list[float], float]:
    """(wall milliseconds of each, CPU milliseconds per piece of work in this process)."""
    await work()
    walls, cpu = [], time.process_time()
    for _ in range(times):
        began = time.perf_counter()
        await work()
        walls.append((time.perf_counter() - began) * 1000)
    return walls, (time.process_time() - cpu) * 1000 / times


async def run(url: str, cycles: int) -> None:
    """Measure an installation with 1, 10 and 50 use cases."""
    database = Database(url)
    settings = Settings(home=Path("unused"))
    print(f"\nAgent cycle, {cycles} cycles each, rules planner (milliseconds)")
    print(f"{'use cases':>10} {'cycle p50':>10} {'p95':>8} {'CPU':>8} {'without machine p50':>20} {'CPU':>8}")
    known = 0
    for count in (1, 10, 50):
        for number in range(known, count):
            await make_world(database, name=f"use-case-{number}")
        known = count
        context = make_context(database, started=[])
        agent = Agent(database, context, settings)

        async def bare(context: object = context) -> None:
            facts = await observe(database, settings, make_context(database).policy, clock.now())
            await RulesPlanner().plan(facts, assess(facts))

        walls, cpu = await measure(lambda agent=agent: agent.run_cycle("benchmark"), cycles)
        bare_walls, bare_cpu = await measure(bare, cycles)
        p95 = sorted(walls)[int(len(walls) * 0.95)]
        print(
            f"{count:>10} {statistics.median(walls):>10.1f} {p95:>8.1f} {cpu:>8.1f} "
            f"{statistics.median(bare_walls):>20.1f} {bare_cpu:>8.1f}"
        )
    await database.close()


def main() -> None:
    """Run on an embedded server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ma-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        with embedded_server(Path(directory) / "pg") as url:
            migrate(url)
            asyncio.run(run(url, options.cycles))


if __name__ == "__main__":
    main()
