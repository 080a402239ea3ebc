"""A control plane as it runs: the real application on a loopback port, over a real database."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
import yaml
from typer.testing import CliRunner, Result

from meta_agent.api.app import create_app
from meta_agent.bootstrap import bootstrap
from meta_agent.cli import app
from meta_agent.runtime import read_policy
from meta_agent.settings import Settings, load_settings
from pipelines import actions
from pipelines.context import Context
from storage import deployments, identities
from storage.api_keys import new_secret
from storage.database import Connection, Database
from storage.vocabulary import Role

T = TypeVar("T")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], T | None], seconds: float = 10.0) -> T:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@dataclass(frozen=True)
class Installation:
    """A configured home with its database and, while it runs, its control plane."""

    config: Path
    settings: Settings
    url: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def ask(self, question: Callable[[Connection], Awaitable[T]]) -> T:
        """Run one transaction against the database."""

        async def once() -> T:
            database = Database(self.url, pool_size=1)
            try:
                async with database.transaction() as connection:
                    return await question(connection)
            finally:
                await database.close()

        return asyncio.run(once())

    def judge(self, proposal_id: str) -> str:
        """What a worker does first with a proposal: the verdict that counts."""

        async def once() -> str:
            database = Database(self.url, pool_size=2)
            context = Context(
                database=database,
                policy=read_policy(self.settings),
                gateway_url="http://unused",
                gateway_key="",
            )
            try:
                return str(await actions.guard(context, proposal_id))
            finally:
                await database.close()

        return asyncio.run(once())

    def run(self, *arguments: str, key: str | None = None) -> Result:
        """The command line in this process."""
        environment = {
            "META_AGENT_KEY": key,
            "META_AGENT_URL": None,
            "META_AGENT_HOME": None,
            "NO_COLOR": "1",
        }
        return CliRunner().invoke(app, ["--config", str(self.config), *arguments], env=environment)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line as a process."""
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from meta_agent.cli import main; main()",
                "--config",
                str(self.config),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )
        self.processes.append(process)
        return process

    @staticmethod
    def until(condition: Callable[[], T | None]) -> T:
        """Wait for something to become true."""
        return until(condition)

    def release(self, model: str) -> str:
        """A release of the use case that was never tested."""

        async def make(connection: Connection) -> str:
            deployment_id = await deployments.ensure_deployment(
                connection,
                provider="lab",
                model=model,
                parameters={},
                system_prompt=None,
                guard_profile="default",
                price_input=Decimal("0.000001"),
                price_output=Decimal("0.000002"),
            )
            return await deployments.create_release(
                connection, use_case="story-teller", deployment_id=deployment_id, created_by="test"
            )

        return self.ask(make)

    def key_of(self, name: str, role: Role) -> str:
        """A key that acts as an operator of that role."""

        async def make(connection: Connection) -> str:
            await identities.ensure_user(connection, name=name, password_hash="none", role=role)
            return await identities.ensure_key(
                connection,
                key_id=name,
                secret=new_secret(),
                name=name,
                scopes=["read", "operate", "approve"],
                acts_as=name,
            )

        return self.ask(make)


@pytest.fixture
def nobody() -> str:
    """An address at which nothing answers."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def installation(tmp_path: Path, db_url: str) -> Iterator[Installation]:
    """Configured and bootstrapped; nothing runs."""
    config = tmp_path / "meta-agent.yaml"
    document: dict[str, Any] = {
        "home": str(tmp_path / "home"),
        "database": {"url": db_url},
        "control": {"port": free_port()},
        "gateway": {"port": free_port()},
        "providers": [
            {"name": "lab", "kind": "openai_compatible", "base_url": f"http://127.0.0.1:{free_port()}/v1"}
        ],
        "use_cases": [
            {
                "name": "story-teller",
                "risk": "medium",
                "stable": {"provider": "lab", "model": "big"},
                "budget_usd_per_month": 500,
            }
        ],
    }
    config.write_text(yaml.safe_dump(document))
    settings = load_settings(config, {})

    async def prepare() -> None:
        database = Database(db_url, pool_size=1)
        try:
            await bootstrap(database, settings)
        finally:
            await database.close()

    asyncio.run(prepare())
    made = Installation(config, settings, db_url)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


@pytest.fixture
def control(installation: Installation) -> Iterator[Installation]:
    """The same, with its control plane answering."""
    stopped: list[BaseException | None] = []
    settings = installation.settings
    database = Database(installation.url, pool_size=3)
    config = uvicorn.Config(
        create_app(database, settings, read_policy(settings)),
        host=settings.control.host,
        port=settings.control.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)

    async def serve() -> None:
        await server.serve()
        await database.close()

    def work() -> None:
        try:
            asyncio.run(serve())
            stopped.append(None)
        except BaseException as error:
            stopped.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until(lambda: server.started or stopped)
    yield installation
    server.should_exit = True
    thread.join(10)
    assert stopped == [None]
