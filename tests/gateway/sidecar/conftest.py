"""A worker's half without a gateway, its sidecar in a process or in this one, and a database behind both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from gateway.backoffice import BackOffice
from gateway.settings import GatewayConfig
from gateway.sidecar.in_process import InProcessSidecar
from gateway.sidecar_link import SidecarLink, SidecarProcess
from storage import deployments, identities, routes, use_cases
from storage.clock import now
from storage.database import Database
from storage.ids import new_id
from storage.vocabulary import Arm, AssignmentUnit, Risk

USE_CASE = "story-teller"

MakeLink = Callable[[Database], SidecarLink]


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """The condition's value once it is true; fails after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not come true in time")


def row(**more: Any) -> dict[str, Any]:
    """An interaction as a worker writes it."""
    return {
        "id": new_id("int"),
        "at": now(),
        "kind": "live",
        "use_case": USE_CASE,
        "key_id": "app",
        "status": "ok",
        "stream": False,
        "usage_estimated": False,
        "findings": [],
        **more,
    }


@dataclass
class World:
    """What the control plane does to the database."""

    db: Database

    async def route(self, model: str, provider: str = "lab") -> int:
        """Have everybody answered by a model; the version of that."""
        async with self.db.transaction() as connection:
            deployment = await deployments.ensure_deployment(
                connection,
                provider=provider,
                model=model,
                price_input=Decimal("0.000001"),
                price_output=Decimal("0.000002"),
            )
            release = await deployments.create_release(
                connection, use_case=USE_CASE, deployment_id=deployment, created_by="test"
            )
            stored = await routes.set_route(
                connection,
                use_case=USE_CASE,
                arms=[routes.ArmSetting(Arm.STABLE, release, 1.0)],
                assignment_unit=AssignmentUnit.REQUEST,
                reason="test",
                created_by="test",
            )
        return stored.version

    async def key(self, key_id: str = "app") -> None:
        async with self.db.transaction() as connection:
            await identities.ensure_key(
                connection, key_id=key_id, secret="s" * 48, name=key_id, scopes=("infer",)
            )

    async def ids(self, table: str = "interactions") -> list[str]:
        async with self.db.connection() as connection:
            return list((await connection.execute(text(f"select id from {table} order by id"))).scalars())

    async def execute(self, statement: str) -> None:
        async with self.db.transaction() as connection:
            await connection.execute(text(statement))

    async def served(self) -> dict[str, int]:
        """Which version each gateway says it serves."""
        async with self.db.connection() as connection:
            rows = await connection.execute(text("select id, routes_version from gateways"))
            return {row.id: row.routes_version for row in rows}


def config_for(spool: Path, url: str, **more: Any) -> GatewayConfig:
    given: dict[str, Any] = {"gateway_id": "gw-test", "providers": {}, "flush_seconds": 0.05, **more}
    return GatewayConfig(spool_dir=spool, database_url=url, **given)


@contextlib.asynccontextmanager
async def working(config: GatewayConfig, link: SidecarLink) -> AsyncIterator[BackOffice]:
    office = BackOffice(config, link)
    await office.start()
    try:
        yield office
    finally:
        await office.close()


def model_of(office: BackOffice) -> str | None:
    """Who answers by what this worker knows."""
    snapshot = office.table.snapshot
    route = snapshot.routes.get(USE_CASE) if snapshot else None
    return route.arms[0].deployment.model if route else None


def gauge(office: BackOffice, name: str) -> float:
    return {short: value for short, _, value in office.gauges()}[f"meta_agent_{name}"]


@pytest.fixture
async def world(db: Database) -> World:
    async with db.transaction() as connection:
        await use_cases.declare(connection, name=USE_CASE, risk=Risk.MEDIUM)
    return World(db)


@pytest.fixture(params=["in_process", "process"])
def make_link(request: pytest.FixtureRequest) -> MakeLink:
    """Both kinds of sidecar: what holds for one holds for the other."""
    if request.param == "process":
        return lambda database: SidecarProcess()
    return InProcessSidecar
