"""The simulator's connections: read a request, answer it, stream, or hang up on the caller.

It knows HTTP and nothing of models.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from meta_agent.demo import wire

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_LIMIT = 8 * 1024 * 1024


class HangUpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the one thing ASGI cannot do: hang up on the caller."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["hang_up"] = self.transport.close


class Exchange:
    """One request and the means to answer it."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._hang_up: Callable[[], None] = scope["state"]["hang_up"]
        self._receive = receive
        self._send = send

    async def read(self) -> object:
        """The body as JSON; raises the error that OpenAI would answer with."""
        body = b""
        more = True
        while more:
            message = await self._receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > BODY_LIMIT:
                raise wire.WireError(413, "The body is too large.", kind="invalid_request_error")
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise wire.WireError(
                400, "We could not parse the JSON body of your request.", kind="invalid_request_error"
            ) from None

    async def answer(
        self,
        body: bytes,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole answer."""
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        length = (b"content-length", str(len(body)).encode())
        start = [(b"content-type", kind.encode()), length, *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        """Send the head of a stream of events."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of a stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def hang_up(self) -> None:
        """Close the connection, whatever was promised."""
        self._hang_up()
        await self.wait_for_caller_to_leave()

    async def wait_for_caller_to_leave(self) -> None:
        """Say nothing until the connection is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is promised, so that a used one is reported in one line."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.listen(256)
    return listener
