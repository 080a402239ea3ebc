"""Clients that mean harm, or know no better: on the wire, in the body, with the key."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from gateway.connection import Limits
from gateway.errors import ApiError
from gateway.keys import authenticate
from storage import routes
from storage.clock import now
from storage.routing import RoutingSnapshot
from tests.gateway.conftest import USE_CASE, Fleet, Running, until
from tests.gateway.fake_upstream import FakeUpstream

BODY: Any = {"model": USE_CASE, "messages": [{"role": "user", "content": "tell me of the sea"}]}


async def dial(gateway: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1]))


def request(gateway: Running, *headers: str, body: bytes = b"", length: bool = True) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {gateway.token}"]
    lines += [*headers, *([f"content-length: {len(body)}"] if length else [])]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(size)


async def test_pipelined_requests_are_answered_in_order(gateway: Running, fleet: Fleet) -> None:
    reader, writer = await dial(gateway)
    bodies = [{**BODY, "messages": [{"role": "user", "content": f"number {n}"}]} for n in range(5)]
    writer.write(b"".join(request(gateway, body=json.dumps(body).encode()) for body in bodies))
    for number in range(5):
        status, answer = await one_answer(reader)
        assert (status, f"number {number}" in answer.decode()) == (200, True)
    writer.close()
    await until(lambda: _count(fleet, 5))


async def _count(fleet: Fleet, count: int) -> bool:
    return len(await fleet.rows()) == count


@pytest.mark.parametrize(
    "framing",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: -1",),
        ("content-length: 99999999999999999999999",),
        ("transfer-encoding: chunked, identity",),
        ("x-a: b\x00c", "content-length: 0"),
    ],
)
async def test_ambiguous_requests_are_refused(gateway: Running, framing: tuple[str, ...]) -> None:
    reader, writer = await dial(gateway)
    writer.write(request(gateway, *framing, length=False) + b"0\r\n\r\nGET /healthz/live HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
    writer.close()


async def test_a_body_that_nobody_reads_is_not_kept(gateway: Running) -> None:
    for path in ("/healthz/live", "/metrics", "/v1/models", "/v1/models/x"):
        headers = {"authorization": f"Bearer {gateway.token}"}
        answer = await gateway.http.request("GET", path, content=b"x" * 5000, headers=headers)
        assert answer.status_code == 413, path


async def test_a_body_in_chunks_is_one_body(gateway: Running) -> None:
    reader, writer = await dial(gateway)
    writer.write(request(gateway, "transfer-encoding: chunked", length=False))
    for piece in json.dumps(BODY).encode().split(b" "):
        writer.write(b"%x\r\n%s\r\n" % (len(piece) + 1, piece + b" "))
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    assert (await one_answer(reader))[0] == 200
    writer.close()


async def test_a_head_without_end_is_cut_off(gateway: Running) -> None:
    reader, writer = await dial(gateway)
    writer.write(b"GET /healthz/live HTTP/1.1\r\n")
    for number in range(Limits.head_bytes // 1000 + 5):
        writer.write(b"x-%d: %s\r\n" % (number, b"y" * 1000))
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 431")
    writer.close()


async def test_a_request_that_takes_for_ever_is_cut_off(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "request_seconds", 0.2)
    half_a_body = request(gateway, "content-length: 100", length=False) + b"{"
    for start in (b"GET /healthz/live HTTP/1.1\r\nx-a:", half_a_body):
        reader, writer = await dial(gateway)
        writer.write(start)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408")
        writer.close()
    reader, writer = await dial(gateway)
    assert await asyncio.wait_for(reader.read(), 5) == b"", "whoever says nothing is told nothing"
    writer.close()


async def test_a_slow_answer_is_not_cut_off(
    gateway: Running, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "request_seconds", 0.2)
    await gateway.serves(await fleet.route(await fleet.release("sleep:0.5")))
    reader, writer = await dial(gateway)
    body = json.dumps(BODY).encode()
    writer.write(request(gateway, body=body) + b"POST /v1/chat/completions HTTP/1.1\r\nhalf: ")
    assert (await one_answer(reader))[0] == 200, "half a request behind it harms no answer"
    writer.close()


async def test_a_body_over_the_limit_is_not_asked_for(gateway: Running) -> None:
    reader, writer = await dial(gateway)
    writer.write(request(gateway, "expect: 100-continue", "content-length: 100001", length=False))
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 413")
    writer.close()


@pytest.mark.parametrize("excess", [-1, 0, 1])
async def test_the_limit_is_exact(gateway: Running, excess: int) -> None:
    body = json.dumps(BODY).encode()
    response = await gateway.post(content=body + b" " * (100_000 + excess - len(body)))
    assert response.status_code == (413 if excess > 0 else 200)


@pytest.mark.parametrize("depth", [240, 260, 300, 900, 5000])
async def test_a_body_too_deep_to_be_passed_on_is_the_clients_fault(
    gateway: Running, fleet: Fleet, depth: int
) -> None:
    body = json.dumps(BODY)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
    response = await gateway.post(content=body.encode())
    assert response.status_code == (200 if depth < 250 else 400)
    if depth < 250:
        assert (await fleet.one_row())["status"] == "ok"
    else:
        assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', '"\xff"'])
async def test_what_is_no_json_is_refused(gateway: Running, value: str) -> None:
    body = json.dumps(BODY)[:-1] + f', "x": {value}}}'
    assert (await gateway.post(content=body.encode("latin-1"))).status_code == 400


async def test_odd_bodies_are_answered_and_logged(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream
) -> None:
    await gateway.serves(await fleet.route(await fleet.release("no-usage")))
    parts = [{"type": "text", "text": 5}, {"type": "text"}, 7, {"type": "image_url", "image_url": {}}]
    odd: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": None}, {"role": "user", "content": "x"}]},
        {"metadata": {"a": 1, "b": [None]}, "n": 3, "future": {"of": "openai"}, "seed": 2**63},
        {"messages": [{"role": "user", "content": "a JSON escape: \\u0000, \\\\u0000 and \x00\x00"}]},
        {"user": "", "metadata": {"conversation_id": "\r\nx-evil: 1"}},
    ]
    for change in odd:
        response = await gateway.post({**BODY, **change})
        assert response.status_code == 200, change
        assert "x-evil" not in response.headers
    assert upstream.requests[2]["future"] == {"of": "openai"}
    rows = await until(lambda: _all(fleet, len(odd)))
    assert {row["status"] for row in rows} == {"ok"}
    assert rows[3]["request"]["messages"][0]["content"] == "a JSON escape: \\u0000, \\\\u0000 and "


async def _all(fleet: Fleet, count: int) -> list[dict[str, Any]]:
    rows = await fleet.rows()
    return rows if len(rows) == count else []


async def test_a_key_writes_nothing_into_the_log_of_a_use_case_that_it_may_not_call(
    gateway: Running, fleet: Fleet
) -> None:
    token = await fleet.key("other", use_cases=["essay-writer"])
    await gateway.serves(await fleet.route(await fleet.release("say:x")))
    assert (await gateway.post(BODY, token)).status_code == 404
    response = await gateway.post({**BODY, "model": "x" * 50_000}, token)
    assert len(response.content) < 1000
    await gateway.post(BODY)
    assert [row["key_id"] for row in await until(lambda: _all(fleet, 1))] == ["app"]


async def test_a_release_of_another_use_case_cannot_be_pinned(gateway: Running, fleet: Fleet) -> None:
    from storage import use_cases
    from storage.vocabulary import Risk

    async with fleet.db.transaction() as connection:
        await use_cases.declare(connection, name="märchen/ü 100%25", risk=Risk.LOW)
    token = await fleet.key("judge", ("pin",))
    foreign = await fleet.release("say:foreign", use_case="märchen/ü 100%25")
    await gateway.serves(await fleet.route(foreign, use_case="märchen/ü 100%25"))
    response = await gateway.post({**BODY, "model": f"{USE_CASE}@{foreign}"}, token)
    assert response.status_code == 404
    assert (await gateway.post({**BODY, "model": "märchen/ü 100%25"}, token)).status_code == 200
    headers = {"authorization": f"Bearer {token}"}
    path = "/v1/models/m%C3%A4rchen/%C3%BC%20100%2525"
    assert (await gateway.http.get(path, headers=headers)).json()["id"] == "märchen/ü 100%25"
    assert (await gateway.http.head("/v1/models", headers=headers)).status_code == 200
    assert (await gateway.http.options("/v1/models")).status_code == 405


async def test_a_key_expires_while_the_database_is_away(fleet: Fleet) -> None:
    token = await fleet.key(expires_at=now() + timedelta(hours=1))
    async with fleet.db.connection() as connection:
        loaded = await routes.load_snapshot(connection)
    snapshot = RoutingSnapshot.decode(loaded.encode())
    assert snapshot == loaded
    header = {b"authorization": f"Bearer {token}".encode()}
    assert authenticate(snapshot, header).id == "app"
    over = dataclasses.replace(snapshot.keys["app"], expires_at=now() - timedelta(seconds=1))
    with pytest.raises(ApiError, match="No valid API key"):
        authenticate(dataclasses.replace(snapshot, keys={"app": over}), header)
