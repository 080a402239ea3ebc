"""What a key and a use case may take, as callers meet it: refusals, headers, and what is lowered."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from storage import identities
from tests.gateway.conftest import USE_CASE, Fleet, Running, config_for, lab, serving, until
from tests.gateway.stories import (
    BODY,
    COST,
    MESSAGES,
    TOKENS,
    MoodyUpstream,
    arrived,
    key_of,
    metric,
    rows_of,
    serve_by,
)

WHO = pytest.mark.parametrize("who", ["key", "use_case"])


@pytest.fixture
async def upstream() -> AsyncIterator[MoodyUpstream]:
    async with MoodyUpstream().running() as server:
        assert isinstance(server, MoodyUpstream)
        yield server


async def limit(gateway: Running, fleet: Fleet, who: str, *, serving: Any = None, **limits: Any) -> None:
    """Give the test's key, or its use case, these limits; while everything runs."""
    if who == "use_case":
        await serve_by(gateway, fleet, **(serving or {}), limits=limits)
        return
    if serving:
        await serve_by(gateway, fleet, **serving)
    before = snapshot_key(gateway).limits
    async with fleet.db.transaction() as connection:
        assert await identities.change_key(connection, "app", {"limits": limits})
    await arrived(gateway, lambda now: now.keys["app"].limits != before, seconds=1.0)


def snapshot_key(gateway: Running, key_id: str = "app") -> Any:
    snapshot = gateway.app.services.table.snapshot
    assert snapshot is not None
    return snapshot.keys[key_id]


def refused(response: httpx.Response, code: str, words: str = "") -> dict[str, Any]:
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert words in error["message"]
    return dict(error)


# -- rates


@WHO
async def test_requests_per_minute(gateway: Running, fleet: Fleet, who: str) -> None:
    await limit(gateway, fleet, who, requests_per_minute=2)
    first, second, third = [await gateway.post({**BODY, "stream": number == 1}) for number in range(3)]
    assert (first.status_code, second.status_code) == (200, 200)
    assert [each.headers["x-ratelimit-limit-requests"] for each in (first, second, third)] == ["2"] * 3
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second, third)] == [
        "1",
        "0",
        "0",
    ]
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    error = refused(third, "rate_limit_exceeded", "requests per min (RPM)")
    assert error["type"] == "rate_limit_error"
    assert 1 <= int(third.headers["retry-after"]) <= 60
    (row,) = await rows_of(fleet, 1, "status = 'rejected'")
    assert (row["error_type"], row["http_status"], row["request"]) == ("rate_limit_exceeded", 429, None)
    with pytest.raises(openai.RateLimitError):
        await gateway.client().chat.completions.create(**BODY)
    await limit(gateway, fleet, who, requests_per_minute=120)

    async def again() -> bool:
        return (await gateway.post(BODY)).status_code == 200

    await until(again)


@WHO
async def test_tokens_per_minute(gateway: Running, fleet: Fleet, upstream: MoodyUpstream, who: str) -> None:
    await limit(gateway, fleet, who, tokens_per_minute=200)
    response = await gateway.post({**BODY, "max_tokens": 100})
    assert response.status_code == 200
    assert response.headers["x-ratelimit-limit-tokens"] == "200"
    left = int((await gateway.post({**BODY, "max_tokens": 1})).headers["x-ratelimit-remaining-tokens"])
    assert abs(left - (200 - 2 * TOKENS)) < 30, "the estimate was put right by what was used"
    refused(await gateway.post({**BODY, "max_tokens": 190}), "rate_limit_exceeded", "tokens per min (TPM)")
    too_large = await gateway.post({**BODY, "max_completion_tokens": 500})
    refused(too_large, "rate_limit_exceeded", "Request too large")
    assert "retry-after" not in too_large.headers, "waiting does not help"
    assert (await gateway.post({**BODY, "max_tokens": -1_000_000})).status_code == 200
    after = await gateway.post({**BODY, "max_tokens": 1})
    assert after.status_code == 200, "nobody gains or loses by a number that makes no sense"
    assert int(after.headers["x-ratelimit-remaining-tokens"]) < 200 - 3 * TOKENS
    assert len(upstream.requests) == 4


async def test_a_length_that_is_lowered_counts_as_lowered(gateway: Running, fleet: Fleet) -> None:
    await limit(gateway, fleet, "use_case", tokens_per_minute=200, max_tokens=50)
    assert (await gateway.post({**BODY, "max_tokens": 100_000})).status_code == 200


@WHO
async def test_calls_at_once(gateway: Running, fleet: Fleet, upstream: MoodyUpstream, who: str) -> None:
    await gateway.serves(await fleet.route(await fleet.release("gated")))
    await limit(gateway, fleet, who, concurrent=1)
    stream = await gateway.client().chat.completions.create(**BODY, stream=True)
    await anext(stream)
    response = await gateway.post(BODY)
    refused(response, "rate_limit_exceeded", "requests at once")
    assert response.headers["retry-after"] == "1"
    await stream.close()
    await upstream.has_been_cut_off()

    async def free() -> bool:
        return (await gateway.post(BODY)).status_code == 200

    await until(free)
    upstream.gate.set()
    assert [(await gateway.post({**BODY, "stream": True})).status_code for _ in range(3)] == [200] * 3


# -- spend


@WHO
async def test_a_spent_budget_blocks(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, who: str
) -> None:
    await limit(gateway, fleet, who, usd_per_day=1.5 * COST, over_budget="block")
    assert [(await gateway.post(BODY)).status_code for _ in range(2)] == [200, 200]
    error = refused(await gateway.post(BODY), "insufficient_quota", "is spent")
    assert error["type"] == "insufficient_quota"
    assert len(upstream.requests) == 2
    await limit(gateway, fleet, who, usd_per_day=3, usd_per_month=1.5 * COST)
    refused(await gateway.post(BODY), "insufficient_quota", "this month")
    await limit(gateway, fleet, who, usd_per_day=3)
    assert (await gateway.post(BODY)).status_code == 200, "raised without a restart"


@WHO
async def test_a_spent_budget_is_told(gateway: Running, fleet: Fleet, who: str) -> None:
    await limit(gateway, fleet, who, usd_per_day=0.5 * COST, over_budget="alert")
    answered = [await gateway.post(BODY) for _ in range(3)]
    assert [each.headers["x-meta-agent-variant"] for each in answered] == ["stable"] * 3
    subject = "key:app" if who == "key" else f"use_case:{USE_CASE}"
    assert await metric(gateway, "meta_agent_over_budget_total", subject=subject, period="day") == 2


@WHO
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_spent_budget_makes_a_cheaper_release_answer(
    gateway: Running, fleet: Fleet, who: str, streamed: bool
) -> None:
    cheap = await fleet.release("say:cheap")
    limits = {"usd_per_day": 0.5 * COST, "over_budget": "downgrade"}
    await limit(gateway, fleet, who, serving={"downgrade": cheap}, **limits)
    body = {**BODY, "stream": streamed, "metadata": {"conversation_id": "c1"}}
    dear, downgraded = await gateway.post(body), await gateway.post(body)
    assert dear.headers["x-meta-agent-variant"] == "stable"
    assert (downgraded.headers["x-meta-agent-variant"], downgraded.headers["x-meta-agent-release"]) == (
        "fallback",
        cheap,
    )
    assert "cheap" in downgraded.text
    (row,) = await rows_of(fleet, 1, f"release_id = '{cheap}'")
    assert (row["arm"], row["status"], row["conversation_id"]) == (None, "ok", "c1")


# -- sizes


@WHO
async def test_bodies_are_limited(gateway: Running, fleet: Fleet, who: str) -> None:
    await limit(gateway, fleet, who, max_body_bytes=300)
    assert (await gateway.post(BODY)).status_code == 200
    response = await gateway.post({**BODY, "filler": "x" * 300})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    headers = {"authorization": f"Bearer {gateway.token}"}
    message = {"model": USE_CASE, "max_tokens": 5, "messages": MESSAGES, "filler": "x" * 300}
    response = await gateway.http.post("/v1/messages", json=message, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")


async def test_answers_are_no_longer_than_the_least_of_all_limits(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    release = await fleet.release("echo", parameters={"max_tokens": 4000})
    await gateway.serves(await fleet.route(release))
    await limit(gateway, fleet, "use_case", max_tokens=100)
    for asked, sent in (({}, 100), ({"max_tokens": 50}, 50), ({"max_tokens": 5000}, 100)):
        await gateway.post({**BODY, **asked})
        assert upstream.requests[-1]["max_tokens"] == sent
    await limit(gateway, fleet, "key", max_tokens=30)
    await gateway.post({**BODY, "max_completion_tokens": 5000, "stream": True})
    assert upstream.requests[-1]["max_completion_tokens"] == 30
    assert upstream.requests[-1]["max_tokens"] == 30, "the deployment's own parameter too"
    headers = {"authorization": f"Bearer {gateway.token}"}
    body = {"model": USE_CASE, "max_tokens": 5000, "messages": MESSAGES}
    assert (await gateway.http.post("/v1/messages", json=body, headers=headers)).status_code == 200
    assert upstream.requests[-1]["max_tokens"] == 30
    await gateway.http.post("/v1/embeddings", json={"model": USE_CASE, "input": "sea"}, headers=headers)
    assert "max_completion_tokens" not in upstream.requests[-1]


# -- shapes


async def test_a_refusal_has_the_shape_of_its_surface(gateway: Running, fleet: Fleet) -> None:
    token = await key_of(gateway, fleet, "poor", "infer", limits={"requests_per_minute": 0})
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key=token, max_retries=0) as claude:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await claude.messages.create(model=USE_CASE, max_tokens=5, messages=MESSAGES)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
    assert "requests per min" in body["error"]["message"]
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as other:
        await gateway.client(token).responses.create(model=USE_CASE, input="tell me")
    assert (other.value.code, other.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert other.value.response.headers["x-ratelimit-remaining-requests"] == "0"


# -- several gateways


@WHO
async def test_gateways_count_together(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, tmp_path: Path, who: str
) -> None:
    config = config_for(tmp_path / "other", {"lab": lab(upstream.base_url)})
    config = dataclasses.replace(config, gateway_id="gw-other")
    limits = {"usd_per_day": 4.5 * COST, "requests_per_minute": 60, "tokens_per_minute": 600}
    await limit(gateway, fleet, who, **limits)
    async with serving(config, fleet.db, gateway.token) as other:
        name = "key:app" if who == "key" else f"use_case:{USE_CASE}"
        assert (await other.post(BODY)).status_code == 200
        assert [(await gateway.post(BODY)).status_code for _ in range(4)] == [200] * 4
        began = asyncio.get_running_loop().time()

        async def both_know() -> bool:
            spent = [each.app.services.limiter.spent(name)[0] for each in (gateway, other)]
            return min(spent) > 4.5 * COST

        await until(both_know, 5)
        assert asyncio.get_running_loop().time() - began < 2.5
        for each in (gateway, other):
            response = await each.post(BODY)
            refused(response, "insufficient_quota")
            assert int(response.headers["x-ratelimit-remaining-requests"]) <= 58
            assert int(response.headers["x-ratelimit-remaining-tokens"]) <= 600 - 5 * TOKENS + 30
