"""What a caller is spared when providers are slow, flaky or gone, and what the provider is spared."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Fleet, Running, config_for, lab, serving, until
from tests.gateway.stories import BODY, MoodyUpstream, metric, rows_of, serve_by
from tests.gateway.test_durability import NOWHERE, process

BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])


@pytest.fixture
async def upstream() -> AsyncIterator[MoodyUpstream]:
    async with MoodyUpstream().running() as server:
        assert isinstance(server, MoodyUpstream)
        yield server


async def answers(gateway: Running, fleet: Fleet, *models: str, **rules: Any) -> None:
    """The use case is answered by the first model; the others are its fallbacks."""
    releases = [await fleet.release(model) for model in models]
    await gateway.serves(await fleet.route(releases[0]))
    if rules or releases[1:]:
        await serve_by(gateway, fleet, fallbacks=releases[1:], **rules)


# -- timeouts


PATIENCE: list[tuple[str, bool, dict[str, float]]] = [
    ("hang", True, {"first_token_seconds": 0.2}),
    ("comments", True, {"first_token_seconds": 0.2}),
    ("mute", True, {"idle_seconds": 0.2}),
    ("chunk-then-comments", True, {"idle_seconds": 0.2}),
    ("hang", False, {"total_seconds": 0.2}),
    ("hang", True, {"total_seconds": 0.2}),
    ("drip", True, {"total_seconds": 0.2}),
    ("chunk-then-comments", True, {"total_seconds": 0.2}),
]


async def test_each_phase_has_its_patience(fleet: Fleet, upstream: MoodyUpstream, tmp_path: Path) -> None:
    token = await fleet.key()
    patient = lab(upstream.base_url, answer_seconds=30, first_token_seconds=30, idle_seconds=30)
    async with serving(config_for(tmp_path, {"lab": patient}), fleet.db, token) as gateway:
        for count, (model, streamed, waiting) in enumerate(PATIENCE, 1):
            await answers(gateway, fleet, model, waiting={**waiting, "retries": count})
            began = time.monotonic()
            response = await gateway.post({**BODY, "stream": streamed})
            assert 0.2 <= time.monotonic() - began < 2, (model, waiting)
            if model in ("hang", "comments"):
                assert response.status_code == 504
            else:
                assert '"code":"upstream_timeout"' in response.text, "it had begun: its end says so"
            await upstream.has_been_cut_off(count)
    for row in await rows_of(fleet, len(PATIENCE)):
        assert (row["status"], row["error_type"], row["http_status"]) == ("error", "upstream_timeout", 504)


@pytest.fixture
def full_house() -> Iterator[str]:
    """A server whose door is shut: its queue is full and it takes nobody."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            guest = stack.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("connect_seconds", "total_seconds"), [(0.2, None), (30.0, 0.2)], ids=["connect", "total"]
)
async def test_a_door_that_does_not_open(
    fleet: Fleet, tmp_path: Path, full_house: str, connect_seconds: float, total_seconds: float | None
) -> None:
    token = await fleet.key()
    shut = lab(full_house, connect_seconds=connect_seconds, answer_seconds=30)
    async with serving(config_for(tmp_path, {"lab": shut}), fleet.db, token) as gateway:
        await answers(gateway, fleet, "echo", waiting={"retries": 0, "total_seconds": total_seconds})
        began = time.monotonic()
        response = await gateway.post(BODY)
        assert 0.2 <= time.monotonic() - began < 2
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_unreachable")


# -- retries

#: Model, the status that the caller sees, how often it is asked, the pause between.
RETRIES: list[tuple[str, int, int, float]] = [
    ("once:503:", 200, 2, 0.0),
    ("once:502:", 200, 2, 0.0),
    ("once:503:0.3", 200, 2, 0.3),
    ("once:429:0.3", 200, 2, 0.3),
    ("once:503:30", 502, 1, 0.0),  # nobody is kept waiting for so long
    ("once:503:Wed, 21 Oct 2099 07:28:00 GMT", 502, 1, 0.0),
    ("once:429:", 429, 1, 0.0),
    ("once:500:", 502, 1, 0.0),  # it may have done something already
    ("once:504:", 504, 1, 0.0),
    ("once:400:", 400, 1, 0.0),
]


@BOTH
async def test_the_same_deployment_is_asked_again_only_where_that_is_safe(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    for model, status, asked, pause in RETRIES:
        await answers(gateway, fleet, model)
        before = len(upstream.requests)
        response = await gateway.post({**BODY, "stream": streamed})
        assert (response.status_code, len(upstream.requests) - before) == (status, asked), model
        if pause:
            assert upstream.times[-1] - upstream.times[-2] >= pause
        if model.endswith(":30"):
            assert response.headers["retry-after"] == "30"
    rows = {row["model"]: row for row in await rows_of(fleet, len(RETRIES))}
    for model, status, asked, _ in RETRIES:
        row = rows[model]
        assert (row["attempts"], row["status"]) == (asked, "ok" if status == 200 else "error")
        assert row["overhead_ms"] < 200, "what was waited for the provider is no overhead of ours"


async def test_retries_may_be_forbidden(gateway: Running, fleet: Fleet, upstream: MoodyUpstream) -> None:
    await answers(gateway, fleet, "once:503:", waiting={"retries": 0})
    assert (await gateway.post(BODY)).status_code == 502
    assert len(upstream.requests) == 1


# -- fallbacks


@BOTH
async def test_fallbacks_are_asked_in_their_order_and_each_failure_is_a_row(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    await answers(gateway, fleet, "status:500", "html", "say:second", "say:third")
    response = await gateway.post({**BODY, "stream": streamed, "metadata": {"conversation_id": "c1"}})
    assert response.status_code == 200
    assert "second" in response.text
    assert response.headers["x-meta-agent-variant"] == "fallback"
    assert upstream.asked() == ["status:500", "html", "say:second"]
    rows = {row["model"]: row for row in await rows_of(fleet, 3)}
    first, next_one, answered = (rows[model] for model in ("status:500", "html", "say:second"))
    assert [row["status"] for row in (first, next_one, answered)] == ["error", "error", "ok"]
    assert [row["arm"] for row in (first, next_one, answered)] == ["stable", None, None]
    assert first["fallback_of"] is None
    assert next_one["fallback_of"] == answered["fallback_of"] == first["id"]
    assert answered["id"] == response.headers["x-request-id"]
    assert answered["response_text"].strip() == "second"
    assert answered["cost_usd"] > 0
    assert first["cost_usd"] is next_one["cost_usd"] is None
    assert await metric(gateway, "meta_agent_fallbacks_total", reason="upstream_status_500") == 1


async def test_when_all_have_failed_the_caller_hears_of_the_last(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    await answers(gateway, fleet, "status:500", "html", "status:429")
    response = await gateway.post(BODY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    rows = await rows_of(fleet, 3, "status = 'error'")
    (drawn,) = [row for row in rows if row["fallback_of"] is None]
    assert drawn["arm"] == "stable"
    assert {row["fallback_of"] for row in rows} == {None, drawn["id"]}


async def test_a_fault_of_the_request_is_no_reason_to_ask_somebody_else(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    await answers(gateway, fleet, "status:400", "say:second")
    assert (await gateway.post(BODY)).status_code == 400
    assert upstream.asked() == ["status:400"]


# -- circuit breaker


async def test_a_breaker_opens_tries_again_and_closes(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    upstream.broken.add("x")
    await answers(gateway, fleet, "moody:x")
    assert [(await gateway.post(BODY)).status_code for _ in range(5)] == [502] * 5
    refused = await gateway.post(BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_circuit_open")
    assert int(refused.headers["retry-after"]) > 0
    assert len(upstream.requests) == 5, "it is left alone"
    assert await metric(gateway, "meta_agent_breaker_open", state="open") == 1

    async def half_open() -> bool:
        return await metric(gateway, "meta_agent_breaker_open", state="half_open") == 1

    await until(half_open)
    assert (await gateway.post(BODY)).status_code == 502
    assert len(upstream.requests) == 6, "one is let through"
    assert (await gateway.post(BODY)).status_code == 503
    upstream.broken.clear()

    async def well_again() -> bool:
        return (await gateway.post(BODY)).status_code == 200

    await until(well_again)
    assert "breaker_open{" in (await gateway.http.get("/metrics")).text
    assert await metric(gateway, "meta_agent_breaker_open", state="closed") == 0
    assert await metric(gateway, "meta_agent_breaker_open", state="open") == 0
    assert (await gateway.post(BODY)).status_code == 200


async def test_streams_that_break_open_the_breaker_too_and_the_fallback_answers(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    await answers(gateway, fleet, "half", "say:second")
    for _ in range(20):
        response = await gateway.post({**BODY, "stream": True})
        if "second" in response.text:
            break
        assert "upstream_stream_broken" in response.text
    else:
        raise AssertionError("a deployment that never ends a stream is asked for ever")
    assert await metric(gateway, "meta_agent_breaker_open", state="open") == 1


# -- hedging


async def test_nobody_is_asked_twice_unless_it_is_wanted(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    await answers(gateway, fleet, "sleep:0.3", "say:second")
    assert "tell me" in (await gateway.post(BODY)).text
    assert upstream.asked() == ["sleep:0.3"]


@BOTH
async def test_a_faster_fallback_wins_and_the_loser_is_told_to_stop(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    await answers(gateway, fleet, "hang", "say:second", waiting={"hedge_after_seconds": 0.2})
    response = await gateway.post({**BODY, "stream": streamed})
    assert "second" in response.text
    await upstream.has_been_cut_off()
    rows = {row["model"]: row for row in await rows_of(fleet, 2)}
    loser, winner = rows["hang"], rows["say:second"]
    assert (loser["error_type"], winner["status"]) == ("upstream_hedged", "ok")
    assert (winner["fallback_of"], winner["id"]) == (loser["id"], response.headers["x-request-id"])
    assert winner["overhead_ms"] < 150


@BOTH
async def test_who_was_drawn_wins_and_the_rival_is_told_to_stop(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    await answers(gateway, fleet, "slow:first", "hang", waiting={"hedge_after_seconds": 0.05})
    call = asyncio.ensure_future(gateway.post({**BODY, "stream": streamed}))
    await upstream.has_been_asked(2)
    upstream.gate_of("first").set()
    response = await call
    assert "first" in response.text
    assert response.headers["x-meta-agent-variant"] == "stable"
    await upstream.has_been_cut_off()
    rows = {row["model"]: row for row in await rows_of(fleet, 2)}
    winner, rival = rows["slow:first"], rows["hang"]
    assert (winner["status"], winner["arm"], winner["fallback_of"]) == ("ok", "stable", None)
    assert (rival["error_type"], rival["arm"], rival["fallback_of"]) == (
        "upstream_hedged",
        None,
        winner["id"],
    )


async def test_when_one_of_two_fails_the_other_is_waited_for(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    await answers(gateway, fleet, "late:0.2", "sleep:0.3", waiting={"hedge_after_seconds": 0.05})
    assert (await gateway.post(BODY)).status_code == 200
    assert upstream.asked() == ["late:0.2", "sleep:0.3"], "nobody is asked once more"
    assert upstream.cut_off == 0
    rows = {row["model"]: row for row in await rows_of(fleet, 2)}
    assert rows["late:0.2"]["error_type"] == "upstream_status_500"
    assert rows["sleep:0.3"]["fallback_of"] == rows["late:0.2"]["id"]


async def test_when_both_of_two_fail_the_next_in_line_answers(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    waiting = {"hedge_after_seconds": 0.05, "retries": 0}
    await answers(gateway, fleet, "late:0.1", "status:500", "say:third", waiting=waiting)
    assert "third" in (await gateway.post(BODY)).text
    assert upstream.asked() == ["late:0.1", "status:500", "say:third"]
    rows = await rows_of(fleet, 3)
    assert sorted(row["status"] for row in rows) == ["error", "error", "ok"]


# -- switches and stops


async def test_switches_under_load_drop_nothing_and_open_streams_end_on_their_arm(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    await answers(gateway, fleet, "gated", waiting={"idle_seconds": 20})
    streams = [asyncio.ensure_future(gateway.post({**BODY, "stream": True})) for _ in range(5)]
    await upstream.has_been_asked(5)
    done = asyncio.Event()
    seen: list[tuple[int, str]] = []

    async def client(number: int) -> None:
        while not done.is_set():
            response = await gateway.post({**BODY, "stream": number % 2 == 0})
            seen.append((response.status_code, response.headers["x-meta-agent-release"]))

    clients = [asyncio.ensure_future(client(number)) for number in range(20)]
    releases = [await fleet.release(f"say:{number}") for number in range(5)]
    for number, release in enumerate(releases):
        candidate = (releases[number - 1], 0.5)
        await gateway.serves(await fleet.route(release, candidate, rollout_id=f"ro_{number}"))
        asked = len(seen)

        async def some_more(asked: int = asked) -> bool:
            return len(seen) >= asked + 15

        await until(some_more)
    done.set()
    # Those who wait for the gate end with it, the first stable's clients among them.
    upstream.gate.set()
    await asyncio.gather(*clients)
    assert {status for status, _ in seen} == {200}
    assert set(releases) <= {release for _, release in seen}
    for stream in await asyncio.gather(*streams):
        assert stream.text.endswith("data: [DONE]\n\n")
        assert "sea" in stream.text
        assert stream.headers["x-meta-agent-release"] not in releases
    rows = await rows_of(fleet, len(seen) + 5)
    assert {row["status"] for row in rows} == {"ok"}


async def test_a_stop_lets_open_streams_end_and_a_start_needs_no_database(
    fleet: Fleet, upstream: MoodyUpstream, tmp_path: Path
) -> None:
    token = await fleet.key()
    await fleet.route(await fleet.release("gated"))
    async with process(tmp_path, upstream.base_url, fleet.db.url, token) as (running, http):
        chunks: list[str] = []
        began = asyncio.Event()

        async def read() -> None:
            async with http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
                async for text in response.aiter_text():
                    chunks.append(text)
                    began.set()

        reading = asyncio.ensure_future(read())
        await began.wait()
        async with httpx.AsyncClient(base_url=http.base_url) as visitor:
            assert (await visitor.get("/healthz/live")).status_code == 200
        running.send_signal(signal.SIGTERM)

        async def refused() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                async with httpx.AsyncClient(base_url=http.base_url) as visitor:
                    await visitor.get("/healthz/live")
                return False
            return True

        await until(refused)
        assert not reading.done()
        upstream.gate.set()
        await reading
        assert await asyncio.wait_for(running.wait(), 10) == 0
    assert "".join(chunks).endswith("data: [DONE]\n\n")
    (row,) = await rows_of(fleet, 1)
    assert (row["status"], row["response_text"]) == ("ok", "tell me of the sea ")
    async with process(tmp_path, upstream.base_url, NOWHERE, token) as (_, http):
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
