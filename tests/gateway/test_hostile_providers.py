"""Providers that answer oddly: byte for byte what real ones have been seen to send, and worse."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest

from gateway.answer_guard import SAFE_SENTENCE
from gateway.connection import Limits
from tests.gateway.conftest import USE_CASE, Fleet, Running, config_for, lab, serving
from tests.gateway.raw_upstream import HEAD, RawUpstream, event, message, plain, stream

BODY: Any = {"model": USE_CASE, "messages": [{"role": "user", "content": "tell me of the sea"}]}
SECRET = "my key is sk-proj-" + "a1B2" * 12
HELLO = event({"content": "hello"})
STOP = event({}, "stop")
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def raw() -> AsyncIterator[RawUpstream]:
    async with RawUpstream().running() as server:
        yield server


@pytest.fixture
async def gateway(fleet: Fleet, raw: RawUpstream, tmp_path: Path) -> AsyncIterator[Running]:
    token = await fleet.key()
    version = await fleet.route(await fleet.release("any"))
    providers = {"lab": lab(raw.base_url, max_answer_bytes=1_000_000, max_connections=2)}
    async with serving(config_for(tmp_path / "spool", providers), fleet.db, token) as running:
        await running.serves(version)
        yield running


def deep(levels: int) -> bytes:
    answer = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}], "x": %s}'
    return plain(answer % (b"[" * levels + b"]" * levels))


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 502, "upstream_status_204"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", 502, "upstream_stream_broken"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + message({"content": "old"}).partition(b"\r\n\r\n")[2], 200, None),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + message({"content": "hi"}), 200, None),
        (message({"content": "hi"}) + message({"content": "surplus"}), 200, None),
        (b"no http at all\r\n\r\n", 502, "upstream_invalid_answer"),
        (plain({"choices": []}), 502, "upstream_invalid_answer"),
        (plain({"choices": [{"index": [], "message": {"content": "hi"}, "finish_reason": {}}]}), 200, None),
        (message({"content": None}), 200, None),
        (message({"content": "hi"}, usage={"prompt_tokens": "7", "completion_tokens": -1}), 200, None),
        (message({"content": "hi"}, usage=[]), 200, None),
        (deep(300), 502, "upstream_invalid_answer"),
        (plain(b'{"choices": ' + b" " * 1_000_000 + b"[]}"), 502, "upstream_invalid_answer"),
    ],
)
async def test_plain_answers(
    gateway: Running, fleet: Fleet, raw: RawUpstream, answer: bytes, status: int, code: str | None
) -> None:
    raw.answer = answer
    response = await gateway.post(BODY)
    assert response.status_code == status
    assert "surplus" not in response.text
    if code:
        assert response.json()["error"]["code"] == code
    row = await fleet.one_row()
    assert row["id"] == response.headers["x-request-id"]
    assert row["status"] == ("ok" if status == 200 else "error")
    if status == 200:
        assert (row["usage_estimated"], row["cost_usd"] is not None) == (True, True)


CRLF = b": comment\r\nevent: message\r\n" + (HELLO + STOP + DONE).replace(b"\n", b"\r\n")
SPLIT_DATA = HELLO.replace(b'"choices"', b'\ndata: "choices"') + STOP + DONE


@pytest.mark.parametrize(
    ("events", "status"),
    [
        (CRLF, "ok"),
        (SPLIT_DATA, "ok"),
        (HELLO + STOP, "ok"),
        (HELLO + STOP + DONE + event({"content": "after the end"}), "ok"),
        (HELLO + STOP + b'data: {"choices": null, "usage": {"prompt_tokens": "3"}}\n\n' + DONE, "ok"),
        (HELLO, "error"),
        (HELLO + b"data: {half", "error"),
        (HELLO + b'data: {"error": {"message": "exploded"}}\n\n', "error"),
        (b"".join(event({"content": "x" * 50_000}) for _ in range(60)) + STOP + DONE, "error"),
        (HELLO + event({"content": "y", "z": json.loads("[" * 300 + "]" * 300)}) + STOP + DONE, "error"),
    ],
)
async def test_streams(gateway: Running, fleet: Fleet, raw: RawUpstream, events: bytes, status: str) -> None:
    raw.answer = stream(events)
    response = await gateway.post({**BODY, "stream": True})
    assert response.status_code == 502 or response.text.endswith("data: [DONE]\n\n")
    assert "after the end" not in response.text
    assert ('"error"' in response.text) is (status == "error")
    row = await fleet.one_row()
    assert row["status"] == status
    if status == "ok":
        assert row["response_text"] == "hello"


HARMFUL = [
    {"content": SECRET},
    {"content": [{"type": "text", "text": SECRET}]},
    {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": SECRET}]}]},
    {"content": "ok", "reasoning_details": [{"type": "reasoning.text", "text": SECRET}]},
    {"content": None, "function_call": {"name": "f", "arguments": SECRET}},
    {"content": None, "tool_calls": [{"index": None, "function": {"name": "f", "arguments": SECRET}}]},
    {"content": None, "tool_calls": [{"type": "custom", "custom": {"name": "f", "input": SECRET}}]},
    {"content": None, "audio": {"transcript": SECRET}},
]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("body", HARMFUL, ids=lambda body: "+".join(body))
async def test_no_text_escapes_the_guard(
    gateway: Running, fleet: Fleet, raw: RawUpstream, body: Any, streamed: bool
) -> None:
    raw.answer = stream(event(body) + STOP + DONE) if streamed else message(body)
    response = await gateway.post({**BODY, "stream": streamed})
    assert "a1B2" not in response.text
    assert streamed or SAFE_SENTENCE in response.text
    assert "content_filter" in response.text
    row = await fleet.one_row()
    assert (row["status"], row["findings"][0]["category"]) == ("blocked", "privacy")


async def test_what_is_held_of_any_channel_is_given_back(gateway: Running, raw: RawUpstream) -> None:
    held = "sk-pro"  # may become a secret, and does not
    calls = [{"index": None, "id": "c", "function": {"name": "f", "arguments": held}}]
    deltas: list[Any] = [
        {"function_call": {"name": "f", "arguments": held}},
        {"tool_calls": calls},
        {"tool_calls": [{"index": 1, "custom": {"name": "f", "input": held}}]},
        {"audio": {"transcript": held}},
        {"reasoning_details": [{"type": "reasoning.text", "text": held}]},
    ]
    raw.answer = stream(b"".join(map(event, deltas)) + STOP + DONE)
    text = (await gateway.post({**BODY, "stream": True})).text
    assert text.count(held) == len(deltas)


async def test_a_connection_that_was_closed_meanwhile_is_replaced(gateway: Running, raw: RawUpstream) -> None:
    raw.answer = message({"content": "hi"})  # promises to keep the connection, and closes it
    for streamed in (False, False, True, False):
        raw.answer = stream(HELLO + STOP + DONE) if streamed else message({"content": "hi"})
        assert (await gateway.post({**BODY, "stream": streamed})).status_code == 200
    assert len(raw.requests) == 4


async def test_connections_are_limited(gateway: Running, raw: RawUpstream) -> None:
    raw.answer, raw.closes = HEAD % b"application/json", False  # never a whole head
    responses = await asyncio.gather(*(gateway.post(BODY) for _ in range(3)))
    assert sorted(response.status_code for response in responses) == [503, 504, 504]
    raw.answer = message({"content": "hi"})
    assert (await gateway.post(BODY)).status_code == 200


async def test_a_client_that_does_not_read_makes_the_provider_wait_and_is_dropped(
    fleet: Fleet, raw: RawUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "stall_seconds", 1.0)
    raw.answer = stream(event({"content": "x" * 4000}) * 7000)
    token = await fleet.key()
    config = config_for(tmp_path / "spool", {"lab": lab(raw.base_url, idle_seconds=20.0)})
    async with serving(config, fleet.db, token) as gateway:
        await gateway.serves(await fleet.route(await fleet.release("any")))
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1])))
        body = json.dumps({**BODY, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        row = await fleet.one_row()
        client.close()
    assert row["status"] == "cancelled"
    assert 0 < raw.sent < 0.9 * len(raw.answer), "the rest was never read"
    assert len(row["response_text"]) <= raw.sent


def make_certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "ca.pem", directory / "ca.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return certificate, key


async def test_tls_with_an_authority_of_ones_own(fleet: Fleet, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    token = await fleet.key()
    raw = RawUpstream()
    raw.answer = message({"content": "secure"})
    async with raw.running(context):
        url = raw.base_url.replace("http:", "https:")
        trusting, wary = lab(url, ca_file=str(certificate)), lab(url, "wary")
        config = config_for(tmp_path / "spool", {"lab": trusting, "wary": wary})
        async with serving(config, fleet.db, token) as running:
            await running.serves(await fleet.route(await fleet.release("any")))
            for _ in range(2):
                assert "secure" in (await running.post(BODY)).text
            await running.serves(await fleet.route(await fleet.release("any", provider="wary")))
            refused = await running.post(BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_unreachable")
