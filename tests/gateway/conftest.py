"""A gateway on real sockets before a loopback provider, with a real database behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvloop
from sqlalchemy import text

from gateway.app import Gateway
from gateway.connection import Limits
from gateway.server import Server, bind
from gateway.settings import GatewayConfig, ProviderConfig
from gateway.sidecar.in_process import InProcessSidecar
from storage import deployments, identities, routes, use_cases
from storage.database import Database
from storage.vocabulary import Arm, AssignmentUnit, Risk
from tests.gateway.fake_upstream import FakeUpstream

#: These run on the product's loop as well as on that of the other tests.
_ON_BOTH_LOOPS = frozenset({"test_server.py", "test_upstream.py", "test_overhead.py"})

USE_CASE = "story-teller"
SECRET = "0123456789abcdef" * 3
PSEUDONYM_KEY = b"of the tests"


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of a test; of several, one after the other."""
    if item.path.name in _ON_BOTH_LOOPS:
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 10.0) -> Any:
    """The condition's value once it is true; fails after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = await condition()
        if value:
            return value
        await asyncio.sleep(0.02)
    raise AssertionError("the condition did not come true in time")


@dataclass
class Fleet:
    """Use cases, releases, routes and keys in the database."""

    db: Database
    releases: dict[str, str] = field(default_factory=dict)

    async def release(self, model: str, provider: str = "lab", use_case: str = USE_CASE, **more: Any) -> str:
        async with self.db.transaction() as connection:
            deployment = await deployments.ensure_deployment(
                connection,
                provider=provider,
                model=model,
                price_input=Decimal("0.000001"),
                price_output=Decimal("0.000002"),
                **more,
            )
            return await deployments.create_release(
                connection, use_case=use_case, deployment_id=deployment, created_by="test"
            )

    async def route(
        self,
        stable: str,
        candidate: tuple[str, float] | None = None,
        shadow: tuple[str, float] | None = None,
        unit: AssignmentUnit = AssignmentUnit.CONVERSATION,
        use_case: str = USE_CASE,
        rollout_id: str | None = None,
    ) -> int:
        arms = [routes.ArmSetting(Arm.STABLE, stable, 1.0)]
        if candidate:
            arms.append(routes.ArmSetting(Arm.CANDIDATE, *candidate))
        if shadow:
            arms.append(routes.ArmSetting(Arm.SHADOW, *shadow))
        async with self.db.transaction() as connection:
            row = await routes.set_route(
                connection,
                use_case=use_case,
                arms=arms,
                assignment_unit=unit,
                reason="test",
                created_by="test",
                rollout_id=rollout_id,
            )
        return row.version

    async def key(self, key_id: str = "app", scopes: tuple[str, ...] = (), **more: Any) -> str:
        async with self.db.transaction() as connection:
            return await identities.ensure_key(
                connection,
                key_id=key_id,
                secret=SECRET,
                name=key_id,
                scopes=("infer", "inspect", *scopes),
                **more,
            )

    async def rows(self, where: str = "true") -> list[dict[str, Any]]:
        async with self.db.connection() as connection:
            found = await connection.execute(
                text(f"select * from interactions where {where} order by at, id")
            )
            return [dict(row._mapping) for row in found]

    async def one_row(self, where: str = "true") -> dict[str, Any]:
        rows: list[dict[str, Any]] = await until(lambda: self.rows(where))
        assert len(rows) == 1, rows
        return rows[0]


@dataclass
class Running:
    """A gateway that answers on a socket."""

    app: Gateway
    server: Server
    base_url: str
    token: str
    http: httpx.AsyncClient

    def client(self, token: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.base_url}/v1",
            api_key=token or self.token,
            max_retries=0,
            timeout=20,
            http_client=self.http,
        )

    async def post(self, body: Any = None, token: str | None = None, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token or self.token}", **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        return await self.http.post("/v1/chat/completions", headers=headers, **more)

    async def serves(self, version: int) -> None:
        async def applied() -> bool:
            snapshot = self.app.services.table.snapshot
            return snapshot is not None and snapshot.version >= version

        await until(applied)


def config_for(spool: Path, providers: dict[str, ProviderConfig], **more: Any) -> GatewayConfig:
    return GatewayConfig(
        gateway_id="gw-test",
        spool_dir=spool,
        providers=providers,
        flush_seconds=0.05,
        pseudonym_key=PSEUDONYM_KEY,
        **more,
    )


def lab(base_url: str, name: str = "lab", **more: Any) -> ProviderConfig:
    limits = {"answer_seconds": 1.0, "first_token_seconds": 1.0, "idle_seconds": 0.5, **more}
    return ProviderConfig(
        name=name, kind="openai_compatible", base_url=base_url, api_key="sk-of-the-provider", **limits
    )


@contextlib.asynccontextmanager
async def serving(
    config: GatewayConfig, database: Database, token: str, limits: Limits | None = None
) -> AsyncIterator[Running]:
    app = Gateway(config, InProcessSidecar(database))
    await app.start()
    server = Server(app, limits)
    listener = bind("127.0.0.1", 0)
    await server.listen(listener)
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base_url, timeout=20) as http:
        try:
            yield Running(app, server, base_url, token, http)
        finally:
            await server.stop(5)
            await app.stop()
            listener.close()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream().running() as server:
        yield server


@pytest.fixture
async def fleet(db: Database) -> Fleet:
    """A use case and a key; no route yet."""
    async with db.transaction() as connection:
        await use_cases.declare(connection, name=USE_CASE, risk=Risk.MEDIUM)
    return Fleet(db)


@pytest.fixture
async def gateway(fleet: Fleet, upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway whose use case is answered by ``echo``."""
    token = await fleet.key()
    version = await fleet.route(await fleet.release("echo"))
    providers = {
        "lab": lab(upstream.base_url),
        "gone": lab("http://127.0.0.1:9/v1", "gone"),  # nobody listens on the discard port
    }
    config = config_for(tmp_path / "spool", providers, max_body_bytes=100_000)
    async with serving(config, fleet.db, token) as running:
        await running.serves(version)
        yield running
