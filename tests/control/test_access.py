"""Who may do what, and who is kept out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from meta_agent.access import COOKIE
from meta_agent.callers import PUBLIC
from storage import identities
from storage.database import Database
from tests.control.conftest import Clients
from tests.control.seeding import PASSWORD, SECRET, Seeded


def token_in(page: str) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found
    return found.group(1)


def _routes(found: Sequence[BaseRoute]) -> Iterator[APIRoute]:
    for route in found:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)


async def test_every_route_but_the_public_ones_asks_who_is_there(clients: Clients, app: FastAPI) -> None:
    nobody = clients.nobody()
    asked = 0
    for route in _routes(app.routes):
        if route.path in PUBLIC:
            continue
        for method in route.methods:
            answer = await nobody.request(method, re.sub(r"\{[^}]+\}", "x", route.path))
            if route.path.startswith("/api/"):
                assert answer.status_code == 401, route.path
                assert answer.json()["error"]["code"] == "not_logged_in"
            elif route.path != "/logout":
                assert answer.status_code in (303, 204), (route.path, answer.status_code)
                assert answer.headers["location"].startswith("/login")
            asked += 1
    assert asked > 50


async def test_what_is_public_is_answered(clients: Clients) -> None:
    nobody = clients.nobody()
    for path in ("/healthz/live", "/healthz/ready", "/login", "/static/console.css", "/static/vendor/NOTICE"):
        assert (await nobody.get(path)).status_code == 200, path


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("read", "GET", "/api/v1/rollouts", 200),
        ("read", "POST", "/api/v1/agent/pause", 403),
        ("read", "POST", "/api/v1/proposals", 403),
        ("read", "GET", "/api/v1/keys", 403),
        ("operate", "POST", "/api/v1/agent/pause", 200),
        ("operate", "POST", "/api/v1/proposals", 201),
        ("operate", "POST", "/api/v1/approvals", 403),
        ("approve", "POST", "/api/v1/approvals", 201),
        ("approve", "GET", "/api/v1/users", 403),
        ("admin", "GET", "/api/v1/users", 200),
        ("infer", "GET", "/api/v1/rollouts", 403),
        ("nobody", "POST", "/api/v1/approvals", 403),
    ],
)
async def test_a_key_may_do_what_its_scope_says(
    clients: Clients, seeded: Seeded, scope: str, method: str, path: str, status: int
) -> None:
    client = clients.with_key(scope)
    body: dict[str, object] | None = None
    if path.endswith("/proposals"):
        body = {"tool": "scan", "arguments": {}, "reason": "a look"}
    if path.endswith("/approvals") and method == "POST":
        waiting = (await clients.with_key("read").get(f"/api/v1/proposals/{seeded.waiting}")).json()
        digest = waiting["binding_digest"]
        body = {"proposal_id": seeded.waiting, "word": "approve", "binding_digest": digest, "comment": "ok"}
    answer = await client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.json()["error"]["message"].endswith(".")


async def test_a_key_has_no_more_power_than_its_person(
    clients: Clients, db: Database, seeded: Seeded
) -> None:
    async with db.transaction() as connection:
        token = await identities.ensure_key(
            connection, key_id="greedy", secret=SECRET, name="greedy", scopes=["admin"], acts_as="vera"
        )
    client = clients.nobody()
    client.headers["authorization"] = f"Bearer {token}"
    assert (await client.get("/api/v1/rollouts")).status_code == 200
    assert (await client.get("/api/v1/keys")).status_code == 403


@pytest.mark.parametrize(
    "header", ["Bearer nonsense", "Basic abc", "Bearer ma_live_seed-admin_wrong", "Bearer "]
)
async def test_a_bad_key_is_refused_in_words(clients: Clients, header: str) -> None:
    client = clients.nobody()
    client.headers["authorization"] = header
    answer = await client.get("/api/v1/rollouts")
    assert answer.status_code == 401
    assert set(answer.json()["error"]) == {"message", "type", "code"}


async def test_a_cookie_is_http_only_and_same_site(clients: Clients) -> None:
    answer = await clients.nobody().post("/login", data={"name": "anna", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert COOKIE in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


@pytest.mark.parametrize(
    "wanted", ["//evil.test", "https://evil.test", "/\\evil.test", "javascript:alert(1)"]
)
async def test_a_log_in_never_leads_to_another_site(clients: Clients, wanted: str) -> None:
    data = {"name": "anna", "password": PASSWORD, "next": wanted}
    answer = await clients.nobody().post("/login", data=data)
    assert answer.headers["location"] == "/"


async def test_wrong_passwords_are_counted_and_stopped(clients: Clients) -> None:
    client = clients.nobody()
    for _ in range(5):
        answer = await client.post("/login", data={"name": "otto", "password": "wrong"})
        assert answer.status_code == 401
        assert "do not belong together" in answer.text
    stopped = await client.post("/login", data={"name": "otto", "password": PASSWORD})
    assert stopped.status_code == 429
    assert int(stopped.headers["retry-after"]) > 0
    other = await client.post("/login", data={"name": "anna", "password": PASSWORD})
    assert other.status_code == 303


async def test_a_change_by_cookie_needs_the_sessions_token(clients: Clients) -> None:
    client = await clients.logged_in("otto")
    for path in ("/agent/pause", "/api/v1/agent/pause"):
        assert (await client.post(path)).status_code == 403, path
        assert (await client.post(path, headers={"x-csrf-token": "wrong"})).status_code == 403, path
    assert (await client.post("/agent/pause", data={"csrf_token": "wrong"})).status_code == 403
    token = token_in((await client.get("/")).text)
    assert (await client.post("/agent/pause", data={"csrf_token": token})).status_code == 303
    by_header = await client.post("/api/v1/agent/resume", headers={"x-csrf-token": token})
    assert by_header.json()["paused"] is False
    foreign = {"x-csrf-token": token, "sec-fetch-site": "cross-site"}
    assert (await client.post("/agent/pause", headers=foreign)).status_code == 403


async def test_another_sessions_token_is_worth_nothing(clients: Clients) -> None:
    otto, anna = await clients.logged_in("otto"), await clients.logged_in("anna")
    token = token_in((await anna.get("/")).text)
    assert (await otto.post("/agent/pause", data={"csrf_token": token})).status_code == 403


async def test_who_logged_out_is_out(clients: Clients) -> None:
    client = await clients.logged_in("vera")
    cookie = client.cookies[COOKIE]
    token = token_in((await client.get("/")).text)
    assert (await client.post("/logout", data={"csrf_token": token})).status_code == 303
    client.cookies.set(COOKIE, cookie, domain="control.test")
    assert (await client.get("/")).headers["location"] == "/login"


async def test_a_viewer_sees_no_button_that_acts(clients: Clients, seeded: Seeded) -> None:
    client = await clients.logged_in("vera")
    assert "Roll back" not in (await client.get("/use-cases/story-teller")).text
    assert "Abort…" not in (await client.get(f"/rollouts/{seeded.running}")).text
    token = token_in((await client.get("/")).text)
    refused = await client.post(f"/rollouts/{seeded.running}/pause", data={"csrf_token": token})
    assert refused.status_code == 403
    assert "needs the role operator" in refused.text


async def test_every_answer_is_hardened(clients: Clients) -> None:
    client = await clients.logged_in("vera")
    for path in ("/", "/login", "/nowhere", "/api/v1/rollouts", "/static/console.js"):
        headers = (await client.get(path)).headers
        assert "script-src 'self'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


async def test_a_body_without_end_is_refused(clients: Clients) -> None:
    client = clients.with_key("operate")
    answer = await client.post("/api/v1/proposals", content=b"x" * 1_000_001)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
