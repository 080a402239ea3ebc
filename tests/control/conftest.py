"""The control process over a seeded database, and clients in every role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from meta_agent.api.app import create_app
from meta_agent.settings import Settings
from policies.loader import DEFAULT_PATH, load_policy
from policies.policy import Policy
from storage.database import Database
from storage.ids import new_id
from storage.testing import create_clone, drop
from tests.control.seeding import PASSWORD, Seeded, key, seed


@pytest.fixture(scope="session")
def policy() -> Policy:
    return load_policy(DEFAULT_PATH)


@pytest.fixture(scope="session")
def template(server_url: str, policy: Policy) -> Iterator[tuple[str, Seeded]]:
    """A database that was seeded once, for every test to clone."""

    async def fill(url: str) -> Seeded:
        database = Database(url)
        try:
            return await seed(database, policy)
        finally:
            await database.close()

    url = create_clone(server_url)
    with ThreadPoolExecutor(1) as pool:  # a loop of its own, apart from the tests'
        seeded = pool.submit(lambda: asyncio.run(fill(url))).result()
    yield url, seeded
    drop(server_url, url)


@pytest.fixture
def seeded(template: tuple[str, Seeded]) -> Seeded:
    return template[1]


@pytest.fixture
async def db(server_url: str, template: tuple[str, Seeded]) -> AsyncIterator[Database]:
    """A seeded database of its own."""
    name = new_id("test")
    source = make_name(template[0])
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {source}")
    url = template[0].replace(source, name)
    database = Database(url)
    yield database
    await database.close()
    drop(server_url, url)


def make_name(url: str) -> str:
    """The database's name in a URL."""
    return url.partition("?")[0].rsplit("/", 1)[1]


@pytest.fixture(autouse=True)
def _nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What settings without a home would write goes with the test."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def app(db: Database, policy: Policy) -> FastAPI:
    return create_app(db, Settings(), policy)


class Clients:
    """HTTP clients of one app: by key, by log-in, or as nobody."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._open: list[httpx.AsyncClient] = []

    def nobody(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://control.test")
        self._open.append(client)
        return client

    def with_key(self, scope: str) -> httpx.AsyncClient:
        client = self.nobody()
        client.headers["authorization"] = f"Bearer {key(scope)}"
        return client

    async def logged_in(self, name: str) -> httpx.AsyncClient:
        client = self.nobody()
        answer = await client.post("/login", data={"name": name, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        return client

    async def close(self) -> None:
        for client in self._open:
            await client.aclose()


@pytest.fixture
async def clients(app: FastAPI, seeded: Seeded) -> AsyncIterator[Clients]:
    found = Clients(app)
    yield found
    await found.close()
