"""A loopback provider that answers with exactly the bytes that a test gives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n"


def plain(payload: Any) -> bytes:
    """A whole JSON answer."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return HEAD % b"application/json" + b"content-length: %d\r\n\r\n" % len(body) + body


def message(body: Any, **more: Any) -> bytes:
    """A chat completion whose only message is this."""
    return plain({"choices": [{"index": 0, "message": body, "finish_reason": "stop"}], **more})


def stream(events: bytes) -> bytes:
    """A stream that ends with the connection."""
    return HEAD % b"text/event-stream" + b"\r\n" + events


def event(delta: Any, finish: str | None = None, **more: Any) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"object": "chunk", "choices": [choice], **more}).encode() + b"\n\n"


class RawUpstream:
    """Says ``answer`` to every request; closes afterwards where told to."""

    def __init__(self) -> None:
        self.answer = b""
        self.closes = True
        self.connections = 0
        self.sent = 0  #: bytes, roughly
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawUpstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(await reader.readexactly(length))
                for start in range(0, len(self.answer), 65536):
                    writer.write(self.answer[start : start + 65536])
                    await writer.drain()
                    self.sent += 65536
                if self.closes:
                    break
        writer.close()
