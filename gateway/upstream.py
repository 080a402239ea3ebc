"""A lean HTTP/1.1 client: one pool of kept-alive connections per origin.

Speaks just what model servers need: POST and GET, bodies by length, chunked or until close, TLS,
and a limit on every wait. Knows nothing of chat completions. Written here because a general client
costs more CPU per call than all the rest of the gateway together.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from gateway.errors import (
    BusyError,
    ConnectError,
    HungUpError,
    InvalidAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamTimeoutError,
)

_BARE_BYTES = 64 * 1024  #: of heads, trailers and the like, before something comes of it
_READ_AHEAD = 256 * 1024  #: unread bytes of a stream after which the provider is made to wait
_IDLE_SECONDS = 30.0  #: a kept-alive connection older than this is not trusted any more
_DRAIN_SECONDS = 1.0  #: how long the end of a finished answer may take before its connection is dropped
_SWEEP_SECONDS = 0.1  #: one look at all deadlines; a timer for each wait would cost more than the wait


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider lives."""

    host: str
    port: int
    tls: bool
    path: str  #: prefix of every path, without a slash at the end
    socket: str | None = None  #: a Unix socket that answers instead of host and port

    @classmethod
    def parse(cls, base_url: str) -> Origin:
        """From a base URL. Anything but http and https with a host is a configuration error."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url {base_url!r} must look like http://host:port/v1 or https://host/v1")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def host_header(self) -> str:
        """The Host header: with the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Connection(asyncio.Protocol):
    """One connection and the one exchange that runs on it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_end = False
        self._draining: asyncio.TimerHandle | None = None
        self._deadline = 0.0  # of the wait under way; 0: nobody waits
        self.reused = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.finished_at = 0.0
        self._chunks: list[bytes] = []
        self._size = 0
        self._head_done = False
        self._complete = False
        self._keep = False
        self._error: UpstreamError | None = None
        self._heard = False  # any byte of this answer
        self._paused = False
        self._bare = 0  # bytes since the last piece of a body

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.idle_since:  # nobody asked: such a connection cannot be trusted with a request
            self.abort()
            return
        self._heard = True
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._misread(f"not HTTP: {error}")
        except httptools.HttpParserUpgrade:
            self._misread("another protocol than HTTP/1.1")
        if self._bare > _BARE_BYTES and not self._complete:
            self._misread("a head or a trailer without end")

    def _misread(self, words: str) -> None:
        """Nothing more can be read. What goes on after the end of its answer was not asked for."""
        if self._complete:
            self._keep = False
        else:
            self._fail(InvalidAnswerError(words))
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        if self._complete or self._error:
            return
        if self._head_done and not exc and self._body_ends_with_connection():
            self._end()
        elif self._head_done:
            self._fail(StreamBrokenError("the connection was closed in the middle of the answer"))
        else:
            self._fail(HungUpError("the connection was closed before the answer"))

    def _body_ends_with_connection(self) -> bool:
        return b"content-length" not in self.headers and b"transfer-encoding" not in self.headers

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # else a trailer
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # informational; the real head follows
            self.headers = {}
            return
        self._head_done = True
        if not self._waits_for_end:
            self._wake()

    def on_body(self, data: bytes) -> None:
        self._bare = 0
        if self._draining:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._waits_for_end:
            if self._size > self._pool.max_answer_bytes:
                self._fail(InvalidAnswerError(f"longer than {self._pool.max_answer_bytes} bytes"))
                self.abort()
            return
        if self._size > _READ_AHEAD and self._transport and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._head_done:
            self._keep = self._parser.should_keep_alive()  # the parser forgets it after this callback
            self._end()

    # -- waking whoever waits

    def _end(self) -> None:
        self._complete = True
        self.finished_at = time.perf_counter()  # the loop counts in whole milliseconds
        self._wake()
        if self._draining:
            self._draining.cancel()
            self._draining = None
            self._pool.give_back(self, keep=self._keep)

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def expire(self, moment: float) -> None:
        """Give up if whoever waits has waited long enough."""
        if self._deadline and self._deadline <= moment:
            self._fail(UpstreamTimeoutError("no answer in time"))
            self.abort()

    async def _wait(self, deadline: float) -> None:
        self._waiter = self._loop.create_future()
        self._deadline = deadline
        self._pool.watch()
        try:
            await self._waiter
        finally:
            self._deadline = 0.0
            self._waiter = None

    # -- one exchange, in this order

    def send(self, request: bytes) -> None:
        """Write a whole request. Whatever is wrong with the connection shows in the answer."""
        self._reset()
        if self._transport is None or self._transport.is_closing():
            self._fail(ConnectError("the connection was closed before the request"))
        else:
            self._transport.write(request)

    async def receive_all(self, deadline: float) -> bytes:
        """Wait for the whole answer."""
        self._waits_for_end = True
        while not self._complete and self._error is None:
            await self._wait(deadline)
        if self._error is not None:
            raise self._error
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    async def receive_head(self, deadline: float) -> int:
        """Wait for status and headers only."""
        self._waits_for_end = False
        while not self._head_done and self._error is None:
            await self._wait(deadline)
        if not self._head_done and self._error is not None:
            raise self._error
        return self.status

    async def receive_some(self, deadline: float) -> bytes:
        """The bytes that came since the last call; empty when the answer is complete."""
        while not self._chunks and not self._complete and self._error is None:
            await self._wait(deadline)
        if not self._chunks:
            if self._error is not None:
                raise self._error
            return b""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._paused and self._transport:
            self._paused = False
            self._transport.resume_reading()
        return data

    def done(self) -> None:
        """The exchange is over for the caller. The connection is kept if the answer ended well."""
        if self._complete:
            self._pool.give_back(self, keep=self._keep and not self._paused)
        elif self._error is not None or self._transport is None or self._transport.is_closing():
            self.abort()
        elif self._draining is None:
            self._draining = self._loop.call_later(_DRAIN_SECONDS, self.abort)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection at once: the provider should stop working on the answer."""
        if self._draining:
            self._draining.cancel()
            self._draining = None
        if self._transport is not None:
            self._transport.abort()
        self._pool.forget(self)

    @property
    def is_open(self) -> bool:
        """Whether another request may be written to it."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def was_stale(self) -> bool:
        """Kept alive by us and closed by the provider before it heard the request."""
        return self.reused and not self._heard and isinstance(self._error, ConnectError | HungUpError)


class Pool:
    """The connections to one origin. Belongs to the running event loop."""

    def __init__(
        self,
        origin: Origin,
        *,
        connect_seconds: float,
        max_connections: int,
        max_answer_bytes: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.origin = origin
        self.max_answer_bytes = max_answer_bytes
        self._connect_seconds = connect_seconds
        self._max_connections = max_connections
        self._tls = (tls or ssl.create_default_context()) if origin.tls else None
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._connecting = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs the connections."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    async def fetch(self, request: bytes, seconds: float) -> tuple[Connection, bytes]:
        """Send a request and wait for its whole answer. Call ``done`` on the connection after."""
        deadline = self.loop.time() + seconds
        for fresh in (False, True):
            connection = await self._acquire(fresh, deadline)
            connection.send(request)
            try:
                return connection, await connection.receive_all(deadline)
            except UpstreamError:
                connection.abort()
                if fresh or not connection.was_stale:
                    raise
            except BaseException:
                connection.abort()
                raise
        raise AssertionError("unreachable: the second round returns or raises")

    async def open(self, request: bytes, seconds: float) -> Connection:
        """Send a request and wait for the head of its answer. The caller reads on and says ``done``."""
        deadline = self.loop.time() + seconds
        for fresh in (False, True):
            connection = await self._acquire(fresh, deadline)
            connection.send(request)
            try:
                await connection.receive_head(deadline)
                return connection
            except UpstreamError:
                connection.abort()
                if fresh or not connection.was_stale:
                    raise
            except BaseException:
                connection.abort()
                raise
        raise AssertionError("unreachable: the second round returns or raises")

    async def _acquire(self, fresh: bool, deadline: float) -> Connection:
        oldest = self.loop.time() - _IDLE_SECONDS
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since > oldest:
                connection.reused = True
                connection.idle_since = 0.0
                return connection
            connection.abort()
        if len(self._open) + self._connecting >= self._max_connections:
            raise BusyError(f"{self._max_connections} connections are in use")
        return await self._connect(deadline)

    async def _connect(self, deadline: float) -> Connection:
        origin = self.origin
        seconds = min(self._connect_seconds, deadline - self.loop.time())
        self._connecting += 1
        try:
            async with asyncio.timeout(seconds):
                if origin.socket:
                    _, connection = await self.loop.create_unix_connection(
                        lambda: Connection(self), origin.socket
                    )
                else:
                    _, connection = await self.loop.create_connection(
                        lambda: Connection(self),
                        origin.host,
                        origin.port,
                        ssl=self._tls,
                        server_hostname=origin.host if origin.tls else None,
                    )
        except TimeoutError:
            raise ConnectError(f"no connection in {seconds:.3g} s") from None
        except OSError as error:  # certificate errors are OSErrors too
            raise ConnectError(str(error)) from None
        finally:
            self._connecting -= 1
        self._open.add(connection)
        return connection

    def watch(self) -> None:
        """Look at deadlines from now on, for as long as there are connections."""
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        moment = self.loop.time()
        for connection in tuple(self._open):
            connection.expire(moment)
        while self._idle and self._idle[0].idle_since < moment - _IDLE_SECONDS:
            self._idle.popleft().abort()
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep) if self._open else None

    def give_back(self, connection: Connection, *, keep: bool) -> None:
        """Take a connection whose answer is complete."""
        if not keep or not connection.is_open:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._open.discard(connection)

    def close(self) -> None:
        """Drop all connections."""
        for connection in tuple(self._open):
            connection.abort()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
