"""One connection of a client: its requests one after the other, and the limits that it is held to.

The grammar is llhttp's, which refuses what could be read in two ways; where it does not, this does. A
client may take only so long to send a request or to take an answer, and a head may be only so large;
without that anybody could fill memory and sockets with requests that never end, and needs no key for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Protocol

import httptools

from gateway.errors import ApiError, too_large
from gateway.http_message import STATUS_LINES, Reply, Request

_log = logging.getLogger(__name__)

_HEAD_BYTES = 64 * 1024
_PIPELINED = 16  #: requests that may wait on one connection before it is not read any more
_LONG_BODY_BYTES = 64 * 1024  #: one that waits with a body of that size is enough
_LEAST_TAKEN_BYTES = 16 * 1024  #: whoever takes less of an answer than that in the stall's time is dropped
_DISCARD_BYTES = 1024 * 1024  #: of a refused request's body that are read so that its connection can go on
_LINGER_SECONDS = 2.0  #: a client that is still sending must get the chance to see why it is refused
#: Whoever sends these twice wants two readers to see two different requests.
_SINGLE = frozenset(
    {b"host", b"authorization", b"x-api-key", b"content-length", b"content-type", b"transfer-encoding"}
)
#: What a handler that failed leaves its client with, if nothing was said yet.
_FAILED = ApiError(500, "The gateway failed on this request. Retry in a moment.", "server_error", "internal")


class Application(Protocol):
    """What the server serves."""

    def admit(self, request: Request) -> int:
        """Look at a request's head; the bytes that its body may have. Raises ``ApiError``."""
        ...

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer a whole request, whatever it holds."""
        ...

    async def refuse(self, request: Request, reply: Reply, error: ApiError) -> None:
        """Answer a request whose body is not wanted."""
        ...


class Limits:
    """How long and how large; one object for all connections."""

    head_bytes = _HEAD_BYTES
    request_seconds = 60.0  #: from the first byte of a request to its last
    stall_seconds = 60.0  #: without a client taking anything of an answer that waits for it
    idle_seconds = 75.0  #: between two requests


class Host(Protocol):
    """The server that a connection belongs to."""

    app: Application
    limits: Limits
    loop: asyncio.AbstractEventLoop
    connections: set[Connection]
    draining: bool  #: it stops: nothing new is taken
    date: bytes  #: of now, as headers have it

    def time(self) -> float:
        """The loop's clock."""
        ...

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        ...


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: Host) -> None:
        self.server = server
        self._app = server.app
        self._limits = server.limits
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, Reply, ApiError | None]] = deque()
        self._reply: Reply | None = None  #: of the request being answered
        self._task: asyncio.Task[None] | None = None
        self._closing = False  # nothing more is read
        self._reading_paused = False
        self.write_paused = False
        self._unsent = 0  # bytes, when the sweeper last looked
        self._drained: asyncio.Future[None] | None = None
        self.deadline = 0.0  #: when the sweeper may give up on it; 0: never
        self._bare = 0  # bytes of a head, or between two pieces of a body
        self._is_11 = True
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = True
        self._request: Request | None = None
        self._refusal: ApiError | None = None
        self._expects = False
        self._body: bytes | bytearray = b""
        self._size = 0
        self._body_limit = 0
        self._raw_left = 0

    @property
    def date(self) -> bytes:
        """See ``gateway.http_message.Wire``."""
        return self.server.date

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP
        self.server.connections.add(self)
        self.deadline = self.server.time() + self._limits.request_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.deadline = 0.0
        self._waiting.clear()
        del self._parser  # it holds on to this object, and only the collector would part them
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._task is None:
            self.server.forget(self)
            return
        if self._reply is not None and not self._reply.finished:
            self._reply.gone = True
            self._task.cancel()
        self._task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        """Only now is nothing of it left: what a handler does in its end belongs to it."""
        self._reply = self._task = None
        self.server.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._bare += len(data)
        if self._raw_left:
            self._read_raw(data)
        elif self._bare > self._limits.head_bytes and self._in_head:
            self._parse_much(data)
        else:
            self._parse(data)
            if self._bare > self._limits.head_bytes:
                self._turn_away(431)

    def _parse_much(self, data: bytes) -> None:
        """More than a head may have: it may be one too large, or there may be a body behind it."""
        allowed = len(data) + self._limits.head_bytes - self._bare
        self._bare = self._limits.head_bytes
        self._parse(data[:allowed])
        if self._in_head and self._bare == self._limits.head_bytes:
            self._turn_away(431)
        else:
            self.data_received(data[allowed:])

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._go_on_in_http(data[stop.args[0] :])
        except httptools.HttpParserError:
            self._turn_away(400)

    # -- offers of another protocol (h2c by Java's client): not taken up, the request is answered in HTTP/1.1

    def _go_on_in_http(self, rest: bytes) -> None:
        """The parser stops at such an offer, before the body; a connection that made one is closed after."""
        if self._request is None or b"transfer-encoding" in self._headers:
            self._turn_away(400)
            return
        self._raw_left = int(self._headers.get(b"content-length", b"0"))
        self._read_raw(rest)

    def _read_raw(self, data: bytes) -> None:
        piece = data[: self._raw_left]
        self._raw_left -= len(piece)
        if piece:
            self.on_body(piece)
        if not self._raw_left:
            self._complete(keep=False)
            self._closing = True

    def pause_writing(self) -> None:
        self.write_paused = True
        self._give_time_to_take()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._reply is not None and not self._reply.finished:
            self.deadline = 0.0
        else:
            more = _LINGER_SECONDS if self._closing else self._limits.idle_seconds
            self.deadline = self.server.time() + more
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._reply is None and self._waiting:
            self._go_on()

    # -- httptools

    def on_message_begin(self) -> None:
        self._reset()
        if self._reply is None and not self.write_paused:
            self.deadline = self.server.time() + self._limits.request_seconds

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # trailers: read by nobody, so kept by nobody
        name = name.lower()
        if name in self._headers and name in _SINGLE:
            raise ValueError("a header that may be there once only")
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._bare = 0
        headers = self._headers
        self._check_framing(headers)
        request = self._request = Request(self._parser.get_method(), self._target, headers)
        try:
            self._body_limit = self._app.admit(request)
            announced = headers.get(b"content-length")
            if announced is not None and int(announced) > self._body_limit:
                self._refusal = too_large(self._body_limit)
        except ApiError as error:
            self._refusal = error.with_traceback(None)  # that leads back here: a circle
        except Exception:
            _log.exception("a request could not be looked at")
            self._refusal = _FAILED
        expects = self._is_11 and headers.get(b"expect", b"").lower() == b"100-continue"
        if self._refusal is not None:
            if expects or int(headers.get(b"content-length", b"0")) > _DISCARD_BYTES:
                self._refuse_now()
        elif expects:
            self._expects = True
            self._encourage()

    def _check_framing(self, headers: dict[bytes, bytes]) -> None:
        """Refuse what another reader might read in another way, where the parser does not."""
        version = self._parser.get_http_version()
        self._is_11 = version == "1.1"
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (not self._is_11 or coding.strip().lower() != b"chunked"):
            raise ValueError("a body in a coding that is not understood")
        if self._is_11 and b"host" not in headers:
            raise ValueError("HTTP/1.1 without a host")
        if not self._is_11 and version != "1.0":
            raise ValueError("another version of HTTP")

    def on_body(self, body: bytes) -> None:
        self._bare = 0
        if self._closing:
            return
        self._size += len(body)
        if self._refusal is not None:
            if self._size > _DISCARD_BYTES:
                self._refuse_now()
            return
        if self._size > self._body_limit:
            self._body = b""
            self._refusal = too_large(self._body_limit)
            return
        if not self._body:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body

    def on_message_complete(self) -> None:
        if not self._parser.should_upgrade():
            self._complete(keep=self._parser.should_keep_alive())

    def _complete(self, *, keep: bool) -> None:
        request = self._request
        if request is None or self._closing:
            return
        request.body = bytes(self._body)  # the same object, unless it came in pieces
        self._request, self._body, self._in_head, self._bare = None, b"", True, 0
        self._take(request, self._refusal, keep=keep)

    # -- requests, one after the other

    def _encourage(self) -> None:
        """Say that the body is welcome, once that cannot be taken for a part of the answer before."""
        if self._expects and self._reply is None and not self._waiting and self._transport is not None:
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_now(self) -> None:
        """Answer before the body is read; the connection cannot be used again."""
        request, error = self._request, self._refusal
        if request is not None and error is not None:
            self._closing = True
            self._take(request, error, keep=False)

    def _take(self, request: Request, refusal: ApiError | None, *, keep: bool) -> None:
        keep = keep and self._is_11 and not self.server.draining
        reply = Reply(self, keep=keep, head_only=request.method == b"HEAD", chunked=self._is_11)
        if self._reply is None and not self.write_paused:
            self._begin(request, reply, refusal)
            return
        self._waiting.append((request, reply, refusal))
        much = len(self._waiting) >= _PIPELINED or len(request.body) > _LONG_BODY_BYTES
        if much and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _begin(self, request: Request, reply: Reply, refusal: ApiError | None) -> None:
        self._reply = reply
        self.deadline = 0.0
        self._task = self.server.loop.create_task(self._work(request, reply, refusal))

    async def _work(self, request: Request, reply: Reply, refusal: ApiError | None) -> None:
        try:
            if refusal is None:
                await self._app.answer(request, reply)
            else:
                await self._app.refuse(request, reply, refusal)
        except Exception:
            _log.exception("a handler failed")
        finally:
            self._answered(reply)

    def _answered(self, reply: Reply) -> None:
        if not reply.finished:
            if reply.started or reply.gone:
                self.abort()
            else:
                reply.send(500, [(b"content-type", b"application/json")], _FAILED.body())
        if self._transport is not None:  # else it is let go of when the task has ended
            self._reply = self._task = None
            self._go_on()

    def _go_on(self) -> None:
        """What comes after an answer: the next one, more of a request, or the end."""
        if self._waiting:
            if not self.write_paused:
                self._begin(*self._waiting.popleft())
                if not self._waiting:
                    self._read_on()
        elif self._closing:
            self._finish()
        elif self.server.draining:
            self.wind_up()
        elif self._expects:
            self._encourage()

    def _read_on(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send more of the answer under way."""
        if self._transport is not None:
            self._transport.write(data)

    def end(self, data: bytes, *, keep: bool) -> None:
        """Send the end of an answer."""
        if self._transport is None:
            return
        self._transport.write(data)
        if not keep:
            self._waiting.clear()
            self._finish()
        elif not self.write_paused:
            self.deadline = self.server.time() + self._limits.idle_seconds

    async def drain(self) -> None:
        """Until the client takes more of the answer."""
        while self.write_paused and self._transport is not None:
            self._drained = self.server.loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    def abort(self) -> None:
        """Drop the connection."""
        self._closing = True
        self._waiting.clear()
        if self._transport is not None:
            self._transport.abort()

    # -- the end

    def _finish(self) -> None:
        """Close when the client has taken what was written, and has closed too.

        Closed at once, a client that is still sending would not see the answer. One that takes nothing,
        or does not close, is dropped.
        """
        self._closing = True
        if self._transport is None or self._transport.is_closing():
            return
        self._read_on()
        self._give_time_to_take()
        if not self._unsent:
            self.deadline = self.server.time() + _LINGER_SECONDS
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def _give_time_to_take(self) -> None:
        self._unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        self.deadline = self.server.time() + self._limits.stall_seconds

    def _turn_away(self, status: int) -> None:
        """Refuse what is no request, where there is a place for a refusal, and close."""
        if self._transport is None or self._closing:
            return
        self._closing = True
        if not self._name_the_last():
            self._transport.write(STATUS_LINES[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self._finish()

    def _name_the_last(self) -> bool:
        """Whether there are answers yet to be given; then the connection ends with the last of them."""
        reply = self._waiting[-1][1] if self._waiting else self._reply
        if reply is not None:
            reply.be_last()
        return reply is not None

    def expire(self) -> None:
        """Called by the sweeper when the deadline has passed."""
        self.deadline = 0.0
        if self._transport is None:
            return
        if self.write_paused or self._closing:
            before = self._unsent
            self._give_time_to_take()
            if not self._unsent or self._unsent > before - _LEAST_TAKEN_BYTES:
                self.abort()
        elif self._reply is None and (self._bare or not self._in_head):
            self._turn_away(408)
        elif self._reply is None:
            self._transport.close()

    def wind_up(self) -> None:
        """The server stops: what was asked is answered, and nothing new is taken."""
        if self._name_the_last():
            self._closing = True
        elif self._in_head and not self._bare and self._transport is not None:
            self._transport.close()

    def cancel(self) -> None:
        """The server stops for good."""
        if self._reply is not None:
            self._reply.gone = True
        if self._task is not None:
            self._task.cancel()
        self.abort()
