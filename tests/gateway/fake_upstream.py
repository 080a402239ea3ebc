"""A loopback provider in raw sockets: it answers well or misbehaves, as the model's name says.

echo              the last message, word by word          say:<text>    that text
sleep:<seconds>   echo, late                              hang          never an answer
status:<code>     an error                                flaky         503 once, then echo
html              200 that is no JSON                     error200      200 that holds an error
half              two chunks, then the line is cut        hangup        closed before any answer
until-close       a body that ends with the connection    gzip          an encoding nobody asked for
gated             a stream that waits for ``gate``         chars:<text>  that text, a character a chunk
tools             a tool call                             no-usage      an answer without usage
midstream-error   a chunk, then an error event            mute          a stream that stops, open
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


class FakeUpstream:
    """The server, what it was asked, and the gate of the gated streams."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.connections = 0
        self.cut_off = 0  #: answers during which the gateway closed the connection
        self.gate = asyncio.Event()
        self.port = 0
        self._flaky = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeUpstream]:
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(
                    next(h for h in head.lower().split("\r\n") if "content-length" in h).split(":")[1]
                )
                request = json.loads(await reader.readexactly(length))
                self.heads.append(head)
                self.requests.append(request)
                watcher = asyncio.ensure_future(_closed(reader))
                answer = asyncio.ensure_future(self._answer(request, writer))
                done, _ = await asyncio.wait({watcher, answer}, return_when=asyncio.FIRST_COMPLETED)
                if answer not in done:
                    self.cut_off += 1
                    answer.cancel()
                    return
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
                if answer.result() == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> str:
        kind, _, argument = request["model"].partition(":")
        text = argument if kind in ("say", "chars") else _last_text(request)
        match kind:
            case "sleep":
                await asyncio.sleep(float(argument))
            case "hang":
                await asyncio.sleep(3600)
            case "hangup":
                return "close"
            case "flaky" if self._flaky == 0:
                self._flaky += 1
                return _error(writer, 503, b"")
            case "status":
                return _error(writer, int(argument))
            case "html":
                return _write(writer, b"<html>Bad day</html>")
            case "error200":
                return _write(writer, json.dumps({"error": {"message": "model exploded"}}).encode())
            case "gzip":
                return _write(writer, b"\x1f\x8b...", "content-encoding: gzip\r\n")
        if request.get("stream"):
            return await self._stream(request, kind, text, writer)
        body = json.dumps(_completion(request, kind, text)).encode()
        if kind == "until-close":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
            await writer.drain()
            return "close"
        return _write(writer, body)

    async def _stream(
        self, request: dict[str, Any], kind: str, text: str, writer: asyncio.StreamWriter
    ) -> str:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        pieces = list(text) if kind == "chars" else [f"{word} " for word in text.split(" ")]
        if kind == "tools":
            pieces = []
        for number, piece in enumerate(pieces):
            _event(writer, _chunk(request, {"content": piece}))
            await writer.drain()
            if kind == "half" and number == 1:
                writer.transport.abort()
                return "close"
            if kind == "midstream-error":
                await asyncio.sleep(0.1)  # otherwise the first chunk and the error arrive as one
                _event(writer, {"error": {"message": "the model exploded", "type": "server_error"}})
                break
            if kind == "mute":
                await asyncio.sleep(3600)
            if kind == "gated":
                await self.gate.wait()
            if kind == "chars":
                await asyncio.sleep(0)
        if kind == "tools":
            for delta in _tool_deltas():
                _event(writer, _chunk(request, delta))
        if kind != "midstream-error":
            _event(writer, _chunk(request, {}, "tool_calls" if kind == "tools" else "stop"))
            if request.get("stream_options", {}).get("include_usage") and kind != "no-usage":
                _event(writer, {**_chunk(request, {}), "choices": [], "usage": USAGE})
            _event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return "keep"


async def _closed(reader: asyncio.StreamReader) -> None:
    """Returns when the gateway closes the connection. Nothing else may come during an answer."""
    while not reader.at_eof():
        await asyncio.sleep(0.01)


def _last_text(request: dict[str, Any]) -> str:
    content = request.get("messages", [{"content": ""}])[-1]["content"]
    return content if isinstance(content, str) else json.dumps(content)


def _completion(request: dict[str, Any], kind: str, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if kind == "tools":
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": '{"at": "sky"}'},
        }
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": 1,
        "model": request["model"],
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if kind == "tools" else "stop"}
        ],
        "x_unknown": {"kept": True},
    }
    return answer if kind == "no-usage" else {**answer, "usage": USAGE}


def _chunk(request: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": request["model"],
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _tool_deltas() -> list[dict[str, Any]]:
    head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": part}} for part in ('{"at"', ': "s', 'ky"}')]
    return [{"tool_calls": [each]} for each in (head, *rest)]


def _event(writer: asyncio.StreamWriter, payload: Any) -> None:
    data = payload if isinstance(payload, str) else json.dumps(payload)
    body = f"data: {data}\n\n".encode()
    writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")


def _write(writer: asyncio.StreamWriter, body: bytes, extra: str = "") -> str:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return "keep"


def _error(writer: asyncio.StreamWriter, status: int, more: bytes = b"retry-after: 7\r\n") -> str:
    body = json.dumps({"error": {"message": f"upstream says {status}", "type": "t", "code": "c"}}).encode()
    head = f"HTTP/1.1 {status} No\r\ncontent-length: {len(body)}\r\n".encode()
    writer.write(head + more + b"\r\n" + body)
    return "keep"
