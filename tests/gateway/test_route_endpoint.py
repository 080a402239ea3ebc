"""The choice without the call, and what applications say of answers afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import anthropic
import httpx
import pytest
from sqlalchemy import text

from storage.clock import now
from tests.gateway.conftest import USE_CASE, Fleet, Running, until
from tests.gateway.stories import BODY, COST, MESSAGES, MoodyUpstream, key_of, rows_of, serve_by


@pytest.fixture
async def upstream() -> AsyncIterator[MoodyUpstream]:
    async with MoodyUpstream().running() as server:
        assert isinstance(server, MoodyUpstream)
        yield server


async def ask(gateway: Running, path: str, body: Any, token: str = "", **headers: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token or gateway.token}", **headers}
    return await gateway.http.post(path, json=body, headers=headers)


async def said(fleet: Fleet, count: int) -> list[dict[str, Any]]:
    async def stored() -> list[dict[str, Any]]:
        async with fleet.db.connection() as connection:
            found = await connection.execute(text("select * from feedback order by at, id"))
            rows = [dict(row._mapping) for row in found]
        return rows if len(rows) >= count else []

    rows: list[dict[str, Any]] = await until(stored)
    assert len(rows) == count
    return rows


# -- routes


async def test_a_route_says_whom_to_call_and_with_what(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    token = await key_of(gateway, fleet, "orchestra", "route")
    stable = await fleet.release("big")
    release = await fleet.release(
        "echo", parameters={"temperature": 0.2, "max_tokens": 900}, system_prompt="You tell stories."
    )
    await gateway.serves(await fleet.route(stable, (release, 1.0), rollout_id="ro_1"))
    await serve_by(gateway, fleet, limits={"max_tokens": 300, "requests_per_minute": 100})
    body = {"model": USE_CASE, "user": "u1", "metadata": {"conversation_id": "c1"}}
    response = await ask(gateway, "/v1/route", body, token)
    assert response.status_code == 200
    route = response.json()
    expires = datetime.fromisoformat(route.pop("expires_at"))
    assert timedelta(0) < expires - now() <= timedelta(minutes=5)
    assert route == {
        "object": "route",
        "ticket": response.headers["x-request-id"],
        "use_case": USE_CASE,
        "release": release,
        "deployment": route["deployment"],
        "variant": "candidate",
        "provider": "lab",
        "kind": "openai_compatible",
        "base_url": upstream.base_url,
        "model": "echo",
        "parameters": {"temperature": 0.2, "max_tokens": 300},
        "system_prompt": "You tell stories.",
    }
    everything = response.text + json.dumps(dict(response.headers))
    assert "sk-of-the-provider" not in everything
    assert response.headers["x-ratelimit-remaining-requests"] == "99"
    assert upstream.requests == [], "nobody is called"
    (row,) = await rows_of(fleet, 1)
    told = ("kind", "status", "arm", "unit", "weight", "rollout_id", "release_id", "cost_usd", "surface")
    assert [row[name] for name in told] == [
        "routed",
        "handed_over",
        "candidate",
        "c1",
        1.0,
        "ro_1",
        release,
        None,
        "route",
    ]
    again = (await ask(gateway, "/v1/route", body, token)).json()
    assert (again["release"], again["ticket"] != route["ticket"]) == (release, True)
    score = {"ticket": route["ticket"], "score": 0.8}
    assert (await ask(gateway, "/v1/feedback", score, token)).status_code == 202
    (feedback,) = await said(fleet, 1)
    assert (feedback["interaction_id"], feedback["value"]) == (row["id"], 0.8)


async def test_a_route_is_refused_limited_and_pinned_like_a_call(gateway: Running, fleet: Fleet) -> None:
    token = await key_of(gateway, fleet, "orchestra", "route", "pin", limits={"requests_per_minute": 3})
    blind = await key_of(gateway, fleet, "blind", "infer")
    other = await fleet.release("say:other")
    await gateway.serves(await fleet.route(await fleet.release("say:stable")))
    body = {"model": USE_CASE}
    assert (await ask(gateway, "/v1/route", body, blind)).status_code == 403
    assert (await ask(gateway, "/v1/route", {"model": "nothing"}, token)).status_code == 404
    pinned = (await ask(gateway, "/v1/route", {"model": f"{USE_CASE}@{other}"}, token)).json()
    assert (pinned["release"], pinned["variant"]) == (other, "pinned")
    assert (await ask(gateway, "/v1/route", body, token)).status_code == 200
    assert (await ask(gateway, "/v1/route", body, token)).status_code == 200
    refused = await ask(gateway, "/v1/route", body, token)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" in refused.headers


async def test_a_route_heeds_a_spent_budget(gateway: Running, fleet: Fleet) -> None:
    token = await key_of(gateway, fleet, "orchestra", "route")
    cheap = await fleet.release("say:cheap")
    limits = {"usd_per_day": COST / 2, "over_budget": "downgrade"}
    await serve_by(gateway, fleet, downgrade=cheap, limits=limits)
    assert (await gateway.post(BODY)).status_code == 200
    route = (await ask(gateway, "/v1/route", {"model": USE_CASE}, token)).json()
    assert (route["release"], route["variant"]) == (cheap, "fallback")


# -- feedback


async def test_feedback_is_taken_for_answers_of_every_surface(gateway: Running, fleet: Fleet) -> None:
    client = gateway.client()
    chat = await client.chat.completions.create(model=USE_CASE, messages=MESSAGES)
    response = await client.responses.create(model=USE_CASE, input="tell me")
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key=gateway.token) as claude:
        message = await claude.messages.create(model=USE_CASE, max_tokens=9, messages=MESSAGES)
    stream = await client.chat.completions.create(model=USE_CASE, messages=MESSAGES, stream=True)
    ids = [chat.id, response.id, message.id, *{chunk.id async for chunk in stream}]
    assert [each.partition("int_")[0] for each in ids] == ["chatcmpl-", "resp_", "msg_", "chatcmpl-"]
    for each in ids:
        body = {"response_id": each, "score": 1}
        answer = await ask(gateway, "/v1/feedback", body)
        assert answer.status_code == 202
        assert answer.json()["interaction_id"] == "int_" + each.partition("int_")[2]
    rows = await rows_of(fleet, 4)
    assert {row["interaction_id"] for row in await said(fleet, 4)} == {row["id"] for row in rows}


async def test_the_same_said_twice_is_said_once(gateway: Running, fleet: Fleet) -> None:
    answer = await gateway.client().chat.completions.create(model=USE_CASE, messages=MESSAGES)
    target = {"response_id": answer.id}
    statements: list[dict[str, Any]] = [
        {"score": 0.5},
        {"label": "off-topic"},
        {"comment": "a fine story"},
        {"name": "completed", "value": True, "comment": "read to the end"},
    ]
    ids = []
    for statement in statements * 2:
        response = await ask(gateway, "/v1/feedback", {**target, **statement})
        assert response.status_code == 202
        ids.append(response.json()["id"])
    assert ids[:4] == ids[4:]
    keyed = [
        await ask(gateway, "/v1/feedback", {**target, "score": score}, **{"idempotency-key": "k1"})
        for score in (0.1, 0.9)
    ]
    assert keyed[0].json()["id"] == keyed[1].json()["id"]
    other = await key_of(gateway, fleet, "other", "infer")
    await ask(gateway, "/v1/feedback", {**target, "score": 0.5}, other)
    rows = await said(fleet, 6)
    assert [(row["name"], row["value"], row["label"], row["comment"]) for row in rows] == [
        ("score", 0.5, None, None),
        ("label", "off-topic", "off-topic", None),
        ("comment", "", None, "a fine story"),
        ("completed", True, None, "read to the end"),
        ("score", 0.1, None, None),
        ("score", 0.5, None, None),
    ]


EMPTY: list[dict[str, Any]] = [
    {"score": 1},
    {"response_id": "chatcmpl-x", "score": 1},
    {"response_id": "int_" + "0" * 26},
    {"response_id": "int_" + "0" * 26, "label": "Not a word"},
    {"response_id": "int_" + "0" * 26, "score": [1]},
    {"response_id": "int_" + "0" * 26, "comment": "x" * 5000},
    {"response_id": 7, "score": 1},
]


async def test_feedback_that_says_nothing_is_refused(gateway: Running) -> None:
    for body in EMPTY:
        response = await ask(gateway, "/v1/feedback", body)
        assert response.status_code == 400, body
        assert response.json()["error"]["message"]
