"""The control process over a seeded database, and clients in every role."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from meta_agent.api.app import create_app
from meta_agent.settings import Settings
from policies.loader import DEFAULT_PATH, load_policy
from policies.policy import Policy
from storage.database import Database
from tests.control.seeding import PASSWORD, Seeded, key, seed


@pytest.fixture(scope="session")
def policy() -> Policy:
    return load_policy(DEFAULT_PATH)


@pytest.fixture
async def seeded(db: Database, policy: Policy) -> Seeded:
    return await seed(db, policy)


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
