"""The client towards providers: its limits on every wait, what it keeps and what it drops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.errors import (
    BusyError,
    ConnectError,
    HungUpError,
    InvalidAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from gateway.openai_wire import status_error
from gateway.upstream import Connection, Origin, Pool

REQUEST = b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SLACK = 0.25  #: how much later than said a wait may end

#: What is done with a request that was read; whether the connection goes on after it.
Handler = Callable[[asyncio.StreamWriter], Awaitable[bool]]


class Provider:
    """Runs the present handler for every request; counts connections."""

    def __init__(self) -> None:
        self.handler: Handler = says(OK)
        self.port = 0
        self.connections = 0
        self.open = 0
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            going_on = True
            while going_on:
                await reader.readuntil(b"{}")
                self.requests += 1
                going_on = await self.handler(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


def says(*pieces: bytes, closes: bool = False, pause: float = 0.0) -> Handler:
    """A handler that answers with these pieces."""

    async def handler(writer: asyncio.StreamWriter) -> bool:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        return not closes

    return handler


def endless(start: bytes, piece: bytes) -> Handler:
    """A handler that never comes to an end."""

    async def handler(writer: asyncio.StreamWriter) -> bool:
        writer.write(start)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return handler


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    found = Provider()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(found.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def recording() -> Any:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield complaints
    assert complaints == []


@pytest.fixture
async def pool(provider: Provider) -> AsyncIterator[Pool]:
    found = make_pool(provider.port)
    with recording():
        yield found
        found.close()
        await asyncio.sleep(0.02)


def make_pool(port: int, **more: Any) -> Pool:
    limits = {"connect_seconds": 0.5, "max_connections": 4, "max_answer_bytes": 100_000, **more}
    return Pool(Origin.parse(f"http://127.0.0.1:{port}/v1"), **limits)


async def fetch(pool: Pool, seconds: float = 1.0) -> bytes:
    connection, body = await pool.fetch(REQUEST, seconds)
    connection.done()
    return body


async def stream(pool: Pool, seconds: float = 1.0) -> bytes:
    connection = await pool.open(REQUEST, seconds)
    body = b""
    try:
        while data := await connection.receive_some(pool.loop.time() + seconds):
            body += data
    except BaseException:
        connection.abort()
        raise
    finally:
        connection.done()
    return body


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def takes(seconds: float) -> Any:
    began = time.monotonic()
    yield
    assert seconds - 0.02 <= time.monotonic() - began <= seconds + SLACK


# -- time


async def test_the_wait_for_a_head_and_for_a_body_has_an_end(provider: Provider, pool: Pool) -> None:
    for answer in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf"):
        provider.handler = says(answer)
        with takes(0.3), pytest.raises(UpstreamTimeoutError):
            await fetch(pool, 0.3)
    for answer in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"):
        provider.handler = says(answer)
        with takes(0.3), pytest.raises(UpstreamTimeoutError):
            await pool.open(REQUEST, 0.3)
    await eventually(lambda: provider.open == 0)


async def test_drops_buy_no_time_for_a_whole_answer(provider: Provider, pool: Pool) -> None:
    provider.handler = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x")
    with takes(0.3), pytest.raises(UpstreamTimeoutError):
        await fetch(pool, 0.3)


async def test_the_wait_for_the_next_piece_has_an_end(provider: Provider, pool: Pool) -> None:
    provider.handler = says(CHUNKED, b"2\r\nab\r\n", b"2\r\ncd\r\n", pause=0.2)
    connection = await pool.open(REQUEST, 0.3)
    assert await connection.receive_some(pool.loop.time() + 0.4) == b"ab"
    assert await connection.receive_some(pool.loop.time() + 0.4) == b"cd"
    with takes(0.3), pytest.raises(UpstreamTimeoutError):
        await connection.receive_some(pool.loop.time() + 0.3)
    connection.done()
    await eventually(lambda: provider.open == 0)


async def test_the_wait_for_a_connection_has_an_end() -> None:
    with socket.socket() as deaf:  # it listens, and its queue is full: nothing more is answered
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        pool = make_pool(port)
        with takes(0.5), pytest.raises(ConnectError):
            await fetch(pool, 5)
        with takes(0.2), pytest.raises(ConnectError):
            await fetch(pool, 0.2)
        pool.close()
        for filler in fillers:
            filler.close()


# -- connections


async def test_connections_are_used_again(provider: Provider, pool: Pool) -> None:
    for _ in range(5):
        assert await fetch(pool) == b"ok"
        assert await stream(pool) == b"ok"
    assert provider.connections == 1
    for answer in (
        CHUNKED + b"2;x=y\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
        b"\r\n" + OK,
    ):
        provider.handler = says(answer)
        assert await fetch(pool) == b"ok"


async def test_trailers_do_not_replace_headers(provider: Provider, pool: Pool) -> None:
    head = CHUNKED[:-2] + b"content-encoding: identity\r\nretry-after: 1\r\n\r\n"
    provider.handler = says(head + b"0\r\nretry-after: 99\r\ncontent-encoding: gzip\r\n\r\n")
    connection, _ = await pool.fetch(REQUEST, 1)
    assert connection.headers[b"retry-after"] == b"1"
    assert connection.headers[b"content-encoding"] == b"identity"
    connection.done()


async def test_early_hints_leave_no_headers(provider: Provider, pool: Pool) -> None:
    provider.handler = says(b"HTTP/1.1 103 Early Hints\r\nretry-after: 7\r\n\r\n" + OK)
    connection, _ = await pool.fetch(REQUEST, 1)
    assert b"retry-after" not in connection.headers
    connection.done()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
    ],
)
async def test_an_answer_may_end_with_the_connection(provider: Provider, pool: Pool, answer: bytes) -> None:
    provider.handler = says(answer, closes=True)
    assert await fetch(pool) == b"ok"
    assert await stream(pool) == b"ok"
    assert provider.connections == 2
    await eventually(lambda: not pool._open)


async def test_a_connection_that_was_closed_meanwhile_is_replaced_once(
    provider: Provider, pool: Pool
) -> None:
    provider.handler = says(OK, closes=True)
    for call in (fetch, stream, fetch):
        assert await call(pool) == b"ok"
    for call in (fetch, stream):
        provider.handler = says(OK)
        await fetch(pool)
        provider.handler = says(closes=True)  # it is heard of no more, whoever asks
        before = provider.connections, provider.requests
        with pytest.raises(HungUpError):
            await call(pool)
        assert (provider.connections, provider.requests) == (before[0] + 1, before[1] + 2)


async def test_what_comes_unasked_ends_a_connection(provider: Provider, pool: Pool) -> None:
    for surplus in (b"surplus", OK.replace(b"ok", b"no"), b"HTTP/1.1 200 OK\r\n", b"\0"):
        for pieces in ((OK + surplus,), (OK, surplus)):
            provider.handler = says(*pieces, pause=0.02)
            for call in (fetch, stream, fetch):
                assert await call(pool) == b"ok"
                await asyncio.sleep(0.03)
            assert not pool._idle or not any(connection.is_open for connection in pool._idle)


async def test_there_is_a_limit_of_connections(provider: Provider) -> None:
    provider.handler = says(OK, pause=0.2)
    pool = make_pool(provider.port, max_connections=2)
    answers = await asyncio.gather(*(fetch(pool) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers].count(BusyError) == 1
    assert len(pool._open) <= 2
    provider.handler = says(OK)
    assert await fetch(pool) == b"ok"
    pool.close()


# -- what is no answer


@pytest.mark.parametrize(
    "answer",
    [
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\nabc",
        b"HTTP/1.1 200 OK\nx: y\n\n",
        b"HTTP/1.1 200 OK\r\nx: y\r\n z: folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nretry-after: 1\rset-cookie: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nabc",
        CHUNKED + b"xyz\r\n",
        b"\x15\x03\x01\0\x02\x02\x28",
    ],
)
async def test_what_is_no_http_is_no_answer(provider: Provider, pool: Pool, answer: bytes) -> None:
    for call in (fetch, stream):
        provider.handler = says(answer)
        with pytest.raises(UpstreamError) as caught:
            await call(pool, 0.5)
        assert isinstance(caught.value, InvalidAnswerError)
        await eventually(lambda: not pool._open)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 10_000),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000),
        (b"HTTP/1.1 200 ", b"O" * 10_000),
        (b"", b"\r\n" * 5000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 400),
        (CHUNKED + b"2;x=", b"y" * 10_000),
        (CHUNKED + b"2\r\nok\r\n0\r\nx: ", b"y" * 10_000),
        (CHUNKED + b"2\r\nok\r\n0\r\n", b"x: y\r\n" * 1000),
    ],
)
async def test_what_has_no_end_is_cut_off(provider: Provider, pool: Pool, start: bytes, piece: bytes) -> None:
    provider.handler = endless(start, piece)
    for call in (fetch, stream):
        began = time.monotonic()
        with pytest.raises(InvalidAnswerError):
            await call(pool, 10)
        assert time.monotonic() - began < 5
        await eventually(lambda: provider.open == 0)


async def test_a_whole_answer_has_a_largest_size(provider: Provider, pool: Pool) -> None:
    for size in (100_000, 100_001):
        provider.handler = says(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        if size == 100_000:
            assert len(await fetch(pool)) == size
        else:
            with pytest.raises(InvalidAnswerError):
                await fetch(pool)
    provider.handler = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_000)
    with pytest.raises(InvalidAnswerError):
        await fetch(pool)


async def test_what_is_cut_off_is_broken(provider: Provider, pool: Pool) -> None:
    for answer in (OK[:-1], CHUNKED + b"2\r\nok\r\n", CHUNKED + b"5\r\nok"):
        provider.handler = says(answer, closes=True)
        for call in (fetch, stream):
            with pytest.raises(StreamBrokenError):
                await call(pool)
    for answer in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"):
        provider.handler = says(answer, closes=True)
        for call in (fetch, stream):
            with pytest.raises(HungUpError):
                await call(pool)
    await eventually(lambda: not pool._open)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (b"17", "17"),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT"),
        (b"", None),
        (b"9" * 60_000, None),
    ],
)
def test_what_a_provider_says_of_retries_is_passed_on_if_it_is_short(given: bytes, told: str | None) -> None:
    error = status_error({b"retry-after": given}, 429, b"{}")
    assert isinstance(error, UpstreamStatusError)
    assert error.retry_after == told


# -- streams that nobody reads


async def test_a_provider_waits_for_a_slow_reader(provider: Provider, pool: Pool) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> bool:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(2000):
            writer.write(b"x" * 10_000)
            sent += 10_000
            await writer.drain()
        return False

    provider.handler = flood
    connection = await pool.open(REQUEST, 1)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 20_000_000
    size = 0
    while data := await connection.receive_some(pool.loop.time() + 5):
        size += len(data)
    assert size == 20_000_000
    connection.done()


async def test_a_connection_that_was_made_to_wait_is_not_used_again(provider: Provider, pool: Pool) -> None:
    size = 400_000
    provider.handler = says(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
    connection = await pool.open(REQUEST, 1)
    await eventually(lambda: connection._paused)
    connection.done()  # the caller has seen enough
    provider.handler = says(OK)
    for _ in range(3):
        assert await fetch(pool, 0.5) == b"ok"


async def test_nothing_is_left_of_a_thousand_aborted_streams(provider: Provider) -> None:
    pool = make_pool(provider.port, max_connections=2000)
    provider.handler = endless(CHUNKED, b"2\r\nok\r\n")
    found: list[weakref.ref[Connection]] = []

    async def aborted(number: int) -> None:
        connection = await pool.open(REQUEST, 10)
        found.append(weakref.ref(connection))
        try:
            assert await connection.receive_some(pool.loop.time() + 10)
        finally:
            if number % 2:
                connection.abort()
            connection.done()

    with recording():
        for start in range(0, 1000, 50):
            await asyncio.gather(*(aborted(start + number) for number in range(50)))
        await eventually(lambda: not pool._open and not provider.open, 10)
    gc.collect()
    assert sum(ref() is not None for ref in found) == 0
    await eventually(lambda: pool._sweeper is None)
    assert not pool._idle


async def test_a_call_that_is_cancelled_leaves_nothing(provider: Provider, pool: Pool) -> None:
    provider.handler = says(b"")
    for call in (fetch, stream):
        task = asyncio.ensure_future(call(pool, 10))
        before = provider.connections
        await eventually(lambda before=before: provider.connections > before)  # type: ignore[misc]  # bound now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: not pool._open and not provider.open)


async def test_close_ends_calls_and_the_sweeper(provider: Provider, pool: Pool) -> None:
    provider.handler = says(b"")
    calls = [asyncio.ensure_future(call(pool, 10)) for call in (fetch, stream)]
    await eventually(lambda: provider.open == 2)
    await asyncio.sleep(0.05)
    pool.close()
    with takes(0):
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in ended] == [HungUpError, HungUpError]
    assert pool._sweeper is None
    assert not pool._open


async def test_idle_connections_are_not_trusted_for_ever(
    provider: Provider, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstream._IDLE_SECONDS", 0.2)
    await fetch(pool)
    await eventually(lambda: not pool._open and not pool._idle, 2)
    await eventually(lambda: provider.open == 0)
    assert await fetch(pool) == b"ok"
    assert provider.connections == 2
