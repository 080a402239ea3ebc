"""A bare ASGI proxy, as an engineer would write it in an afternoon: no keys, no routes, no log.

A lean application on uvicorn (uvloop, httptools) with a small pool of kept-alive connections upstream.
Runs by itself: ``python -m benchmarks.gateway.bare_asgi PORT UPSTREAM``.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httptools
import uvicorn

Message = dict[str, Any]
_HOP_BY_HOP = {b"transfer-encoding", b"connection", b"keep-alive"}


class Upstream(asyncio.Protocol):
    """One connection to the provider; one answer at a time, handed on as it comes."""

    def __init__(self) -> None:
        self.parts: deque[bytes] = deque()
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = self.is_whole = self.is_closed = False
        self.waiter: asyncio.Future[None] | None = None

    def ask(self, head: bytes, body: bytes) -> None:
        """Send a request."""
        self.parser = httptools.HttpResponseParser(self)
        self.parts.clear()
        self.headers = []
        self.has_head = self.is_whole = False
        self.transport.write(head + body)

    async def changed(self) -> None:
        """Wait until more of the answer is there."""
        self.waiter = asyncio.get_running_loop().create_future()
        await self.waiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(ConnectionError("the provider closed the connection"))

    # what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in _HOP_BY_HOP:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.is_whole = True


class Proxy:
    """The application."""

    def __init__(self, upstream: int) -> None:
        self.port = upstream
        self.idle: list[Upstream] = []

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        connection = await self.connect()
        connection.ask(self.head(scope, len(body)), body)
        while not connection.has_head:
            await connection.changed()
        status = connection.parser.get_status_code()
        await send({"type": "http.response.start", "status": status, "headers": connection.headers})
        while not connection.is_whole:
            if connection.parts:
                part = connection.parts.popleft()
                await send({"type": "http.response.body", "body": part, "more_body": True})
            else:
                await connection.changed()
        await send({"type": "http.response.body", "body": b"".join(connection.parts)})
        self.idle.append(connection)

    def head(self, scope: Message, length: int) -> bytes:
        """The request's head for the provider."""
        return (
            f"POST {scope['path']} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nauthorization: Bearer x\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    async def connect(self) -> Upstream:
        """A connection that nobody uses."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.is_closed:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Upstream, "127.0.0.1", self.port)
        return connection


if __name__ == "__main__":
    uvicorn.run(
        Proxy(int(sys.argv[2])),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        log_level="error",
    )
