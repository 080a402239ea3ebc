"""A tiny application on the real server, and a client that takes nothing on trust: bytes out, answers in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from gateway.connection import Limits
from gateway.errors import ApiError
from gateway.http_message import Reply, Request
from gateway.replies import send_error
from gateway.server import Server, bind

BODY_LIMIT = 1000


@dataclass
class Answer:
    """One answer, read strictly."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get(b"connection") == b"close"


class Tiny:
    """Answers as the path says."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.running = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.written = 0

    def admit(self, request: Request) -> int:
        if request.path == "/forbidden":
            raise ApiError(401, "no")
        if request.path == "/broken-door":
            raise RuntimeError("a bug")
        return BODY_LIMIT

    async def answer(self, request: Request, reply: Reply) -> None:
        self.seen.append(request)
        self.running += 1
        try:
            await getattr(self, request.path.strip("/").replace("-", "_") or "echo", self.echo)(
                request, reply
            )
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0.05)  # what has to be put in order takes more than one turn of the loop
            raise
        finally:
            self.running -= 1

    async def refuse(self, request: Request, reply: Reply, error: ApiError) -> None:
        send_error(reply, error)

    async def echo(self, request: Request, reply: Reply) -> None:
        text = b"%b %b?%b %b" % (request.method, request.path.encode("latin-1"), request.query, request.body)
        reply.send(200, [], text)

    async def big(self, request: Request, reply: Reply) -> None:
        reply.send(200, [], b"x" * int(request.query))

    async def wait(self, request: Request, reply: Reply) -> None:
        await self.gate.wait()
        await self.echo(request, reply)

    async def hang(self, request: Request, reply: Reply) -> None:
        await asyncio.Event().wait()

    async def stream(self, request: Request, reply: Reply) -> None:
        reply.start(200, [])
        for number in range(int(request.query or b"3")):
            reply.write(b"piece %d;" % number)
        reply.finish(b"end")

    async def slow_stream(self, request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"begin;")
        await self.gate.wait()
        reply.finish(b"end")

    async def flood(self, request: Request, reply: Reply) -> None:
        reply.start(200, [])
        for _ in range(int(request.query)):
            reply.write(b"z" * 10_000)
            self.written += 10_000
            if reply.stalls:
                await reply.drain()
        reply.finish()

    async def crash(self, request: Request, reply: Reply) -> None:
        raise RuntimeError("a bug")

    async def crash_late(self, request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"half")
        raise RuntimeError("a bug")

    async def silent(self, request: Request, reply: Reply) -> None:
        """No answer at all."""

    async def header(self, request: Request, reply: Reply) -> None:
        reply.send(200, [(b"x-from-outside", request.body)], b"")


@dataclass
class Running:
    """The server, and what reached the loop's exception handler."""

    app: Tiny
    server: Server
    port: int
    complaints: list[dict[str, Any]] = field(default_factory=list)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def say(self, *pieces: bytes) -> bytes:
        """All that is answered to these bytes until the server closes."""
        reader, writer = await self.dial()
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()

    async def ask(self, *pieces: bytes) -> list[Answer]:
        """The same, read as answers."""
        return answers_of(await self.say(*pieces))


@contextlib.asynccontextmanager
async def running(limits: Limits | None = None) -> AsyncIterator[Running]:
    """The server on a port; nothing may have reached the loop's exception handler in the end."""
    app = Tiny()
    server = Server(app, limits)
    listener = bind("127.0.0.1", 0)
    await server.listen(listener)
    found = Running(app, server, listener.getsockname()[1])
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.complaints.append(context))
    try:
        yield found
    finally:
        app.gate.set()
        await server.stop(2)
        listener.close()
    assert found.complaints == []
    assert app.running == 0, "a handler is still running after the server has stopped"


def get(target: str, *headers: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {target} {version}", "host: x", *headers, "", ""]).encode("latin-1")


def post(target: str, body: bytes, *headers: str) -> bytes:
    """A request with a body of known length."""
    return get(target, f"content-length: {len(body)}", *headers, method="POST") + body


def answers_of(data: bytes, *, bodiless: bool = False) -> list[Answer]:
    """Cut what a server said into answers; anything that is none fails the test."""
    found = []
    while data:
        answer, data = cut(data, bodiless=bodiless)
        found.append(answer)
    return found


def cut(data: bytes, *, bodiless: bool = False) -> tuple[Answer, bytes]:
    """The first answer, and the rest."""
    head, end, rest = data.partition(b"\r\n\r\n")
    assert end, data[:200]
    first, *lines = head.split(b"\r\n")
    version, status, _ = first.split(b" ", 2)
    assert version == b"HTTP/1.1", first
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b": ")
        assert colon, line
        assert name not in headers, f"{name!r} twice"
        headers[name] = value
    code = int(status)
    if code < 200 or bodiless:
        return Answer(code, headers, b""), rest
    if headers.get(b"transfer-encoding") == b"chunked":
        body, rest = _cut_chunks(rest)
    elif b"content-length" in headers:
        size = int(headers[b"content-length"])
        assert len(rest) >= size, "cut short"
        body, rest = rest[:size], rest[size:]
    else:
        assert headers[b"connection"] == b"close"
        body, rest = rest, b""
    return Answer(code, headers, body), rest


def _cut_chunks(data: bytes) -> tuple[bytes, bytes]:
    pieces, place = [], 0
    while True:
        end = data.find(b"\r\n", place)
        assert end >= 0, "cut short"
        size = int(data[place:end], 16)
        place = end + 2 + size
        pieces.append(data[end + 2 : place])
        assert data[place : place + 2] == b"\r\n", "a chunk that is not as long as it says"
        place += 2
        if not size:
            return b"".join(pieces), data[place:]


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer with a content-length, from a connection that stays open."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = head.split(b"content-length: ")
    body = await reader.readexactly(int(length[1].split(b"\r\n")[0])) if len(length) > 1 else b""
    return cut(head + body)[0]


def hard_close(writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()
