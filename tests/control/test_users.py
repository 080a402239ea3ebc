"""Operators come, change and go; each change is on record and takes effect at once."""

from __future__ import annotations

import pytest

from storage import audit
from storage.database import Database
from tests.control.conftest import Clients
from tests.control.seeding import PASSWORD


async def test_an_operator_comes_works_and_is_shut_out(clients: Clients, db: Database) -> None:
    admin = clients.with_key("admin")
    created = (await admin.post("/api/v1/users", json={"name": "ben", "role": "approver"})).json()
    assert created["role"] == "approver"
    ben = clients.nobody()
    answer = await ben.post("/login", data={"name": "ben", "password": created["password"]})
    assert answer.status_code == 303
    assert (await ben.get("/api/v1/use-cases")).status_code == 200
    assert created["password"] not in (await admin.get("/api/v1/users")).text
    changed = await admin.patch("/api/v1/users/ben", json={"disabled": True})
    assert changed.status_code == 200
    assert (await ben.get("/api/v1/use-cases")).status_code == 401
    again = await clients.nobody().post("/login", data={"name": "ben", "password": created["password"]})
    assert again.status_code != 303
    async with db.connection() as connection:
        told = [row.event for row in await audit.list_rows(connection, subject="ben")]
    assert told == ["user.changed", "session.opened", "user.created"]


async def test_a_new_password_ends_the_old_ones_sessions(clients: Clients) -> None:
    vera = await clients.logged_in("vera")
    assert (await vera.get("/api/v1/use-cases")).status_code == 200
    key = clients.with_key("read")  # acts as vera
    changed = await key.patch("/api/v1/users/vera", json={"password": "a much longer secret"})
    assert changed.status_code == 200
    assert (await vera.get("/api/v1/use-cases")).status_code == 401
    fresh = clients.nobody()
    old = await fresh.post("/login", data={"name": "vera", "password": PASSWORD})
    assert old.status_code != 303
    new = await fresh.post("/login", data={"name": "vera", "password": "a much longer secret"})
    assert new.status_code == 303


@pytest.mark.parametrize(
    ("scope", "method", "path", "body", "status"),
    [
        ("approve", "POST", "users", {"name": "eve", "role": "admin"}, 403),
        ("approve", "PATCH", "users/vera", {"role": "admin"}, 403),
        ("operate", "PATCH", "users/vera", {"password": "a much longer secret"}, 403),
        ("admin", "POST", "users", {"name": "vera", "role": "viewer"}, 409),
        ("admin", "POST", "users", {"name": "Not A Name", "role": "viewer"}, 422),
        ("admin", "POST", "users", {"name": "eve", "role": "viewer", "password": "short"}, 422),
        ("admin", "PATCH", "users/admin", {"disabled": True}, 422),
        ("admin", "PATCH", "users/admin", {"role": "viewer"}, 422),
        ("admin", "PATCH", "users/ghost", {"role": "viewer"}, 404),
        ("admin", "POST", "keys", {"name": "robot", "scopes": ["approve"]}, 422),
    ],
)
async def test_what_is_refused(
    clients: Clients, scope: str, method: str, path: str, body: dict[str, object], status: int
) -> None:
    answer = await clients.with_key(scope).request(method, f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert "error" in answer.json()
