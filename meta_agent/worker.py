"""The worker: pipelines on the durable engine, and the agent's loop, in one process.

Several may run; each needs an id of its own. A worker that loses its hold on its id ends, since a peer may
have taken its runs over, and is started again by whoever supervises it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Mapping

from meta_agent import budgets, privacy
from meta_agent.bootstrap import worker_key
from meta_agent.runner import Agent
from meta_agent.runtime import read_policy
from meta_agent.settings import Settings
from pipelines.context import Context, EvaluationSettings, ProviderAccess
from pipelines.discovery.rank import run_rank
from pipelines.discovery.scan import run_scan
from pipelines.discovery.sources.price_map import price_map_path
from pipelines.engine import Engine, Pipeline, Starter
from pipelines.evaluation.run import run_test
from pipelines.rollout import orphans
from pipelines.rollout.run import run_abort, run_deploy, run_rollback
from storage.database import Database

log = logging.getLogger(__name__)

#: Which pipeline carries out which tool.
PIPELINES: Mapping[str, Pipeline] = {
    "scan": run_scan,
    "rank": run_rank,
    "test": run_test,
    "deploy": run_deploy,
    "rollback": run_rollback,
    "abort": run_abort,
}


def build_context(settings: Settings, database: Database, starter: Starter | None) -> Context:
    """The world that pipelines are given."""
    return Context(
        database=database,
        policy=read_policy(settings),
        gateway_url=settings.gateway.base_url,
        gateway_key=worker_key(settings),
        providers=tuple(
            ProviderAccess(
                name=each.name,
                kind=each.kind,
                base_url=each.url,
                api_key=each.api_key.get_secret_value() if each.api_key else None,
            )
            for each in settings.providers
        ),
        price_map=price_map_path(),
        evaluation=EvaluationSettings(
            recorded_cases=settings.worker.recorded_cases, concurrency=settings.worker.evaluation_concurrency
        ),
        poll_seconds=settings.worker.poll_seconds,
        enqueue=starter.enqueue if starter else None,
    )


async def work(settings: Settings, url: str) -> None:
    """Run until SIGTERM or SIGINT; what is under way goes on in the next worker."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    database = Database(url, pool_size=settings.database.pool_size)
    starter = Starter(url)
    context = build_context(settings, database, starter)
    engine = Engine(context, PIPELINES, settings.worker.id)
    await engine.start()
    log.info("worker %s is ready", settings.worker.id)
    agent = Agent(database, context, settings)
    tasks = [
        asyncio.create_task(each)
        for each in (
            engine.watch(stop),
            agent.serve(stop),
            orphans.watch(context, stop),
            privacy.watch(database, settings.worker.retention_every_seconds, stop),
            budgets.watch(database, stop),
        )
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        stop.set()
        for task in tasks:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(task, 10)
        await engine.stop()
        starter.close()
        await database.close()
