"""The HTTP server under clients that pipeline, dawdle, vanish, smuggle and shout."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable

import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.connection import Limits
from tests.gateway.tiny import (
    BODY_LIMIT,
    Answer,
    Running,
    answers_of,
    cut,
    get,
    hard_close,
    post,
    read_answer,
    running,
)

CLOSE = "connection: close"


def brief() -> Limits:
    """Limits that a test can wait for."""
    limits = Limits()
    limits.request_seconds, limits.stall_seconds, limits.idle_seconds = 0.4, 0.6, 0.5
    return limits


@pytest.fixture
async def tiny() -> AsyncIterator[Running]:
    async with running() as found:
        yield found


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def statuses(answers: list[Answer]) -> list[int]:
    return [answer.status for answer in answers]


# -- one response for each request, in order


async def test_many_pipelined_requests_are_answered_in_order(tiny: Running) -> None:
    asked = [post("/echo", b"%d" % number) for number in range(200)]
    answers = await tiny.ask(b"".join(asked) + get("/echo", CLOSE))
    assert [answer.body for answer in answers[:-1]] == [b"POST /echo? %d" % n for n in range(200)]
    assert [answer.closes for answer in answers] == [False] * 200 + [True]


async def test_a_slow_answer_holds_up_the_ones_behind_it(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.write(get("/wait?first") + get("/stream") + get("/echo?second", CLOSE))
    await eventually(lambda: tiny.app.running == 1)
    tiny.app.gate.set()
    answers = answers_of(await reader.read())
    assert [answer.body for answer in answers] == [
        b"GET /wait?first ",
        b"piece 0;piece 1;piece 2;end",
        b"GET /echo?second ",
    ]
    writer.close()


async def test_refusals_and_answers_are_mixed_in_order(tiny: Running) -> None:
    answers = await tiny.ask(
        get("/echo?1")
        + post("/forbidden", b"secret" * 10)
        + get("/echo?2")
        + post("/echo", b"x" * (BODY_LIMIT + 1))
        + get("/echo?3", CLOSE)
    )
    assert statuses(answers) == [200, 401, 200, 413, 200]
    assert [answer.closes for answer in answers] == [False] * 4 + [True]


async def test_what_is_no_request_ends_the_connection_after_the_answers_before_it(tiny: Running) -> None:
    for rubbish in (b"rubbish\r\n\r\n", get("/", "content-length: x"), b"\0"):
        answers = await tiny.ask(get("/echo?1") + get("/stream") + rubbish + get("/echo?never"))
        assert statuses(answers) in ([200, 200], [200, 200, 400])
        assert answers[-1].closes
    assert all(request.query != b"never" for request in tiny.app.seen)


async def test_rubbish_behind_a_slow_answer_spoils_nothing(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.write(get("/wait"))
    await eventually(lambda: tiny.app.running == 1)
    writer.write(b"rubbish\r\n\r\n")
    await eventually(lambda: all(connection._closing for connection in tiny.server.connections))
    tiny.app.gate.set()
    answers = answers_of(await asyncio.wait_for(reader.read(), 5))
    assert statuses(answers) == [200]
    assert answers[0].closes
    writer.close()


async def test_a_close_in_the_middle_ends_what_is_pipelined(tiny: Running) -> None:
    answers = await tiny.ask(get("/echo?1") + get("/echo?2", CLOSE) + get("/echo?3"))
    assert [answer.body for answer in answers] == [b"GET /echo?1 ", b"GET /echo?2 "]
    assert [answer.closes for answer in answers] == [False, True]
    assert len(tiny.app.seen) == 2


async def test_a_connection_is_kept_and_used_again(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    for number in range(20):
        writer.write(post("/echo", b"%d" % number))
        assert (await read_answer(reader)).body == b"POST /echo? %d" % number
    writer.close()


async def test_http_1_0_is_answered_and_closed(tiny: Running) -> None:
    for more in ((), ("connection: keep-alive",)):
        answers = await tiny.ask(get("/echo", *more, version="HTTP/1.0"))
        assert (statuses(answers), answers[0].closes) == ([200], True)
    answers = await tiny.ask(b"GET /stream HTTP/1.0\r\n\r\n")
    assert (answers[0].body, answers[0].closes) == (b"piece 0;piece 1;piece 2;end", True)
    assert b"transfer-encoding" not in answers[0].headers


async def test_no_answer_to_head_has_a_body(tiny: Running) -> None:
    for target in ("/echo", "/big?5000", "/stream", "/nowhere", "/forbidden"):
        said = await tiny.say(get(target, method="HEAD") + get(target, CLOSE, method="HEAD"))
        answers = answers_of(said, bodiless=True)
        assert len(answers) == 2, said
    sizes = [
        int(a.headers[b"content-length"])
        for a in answers_of(await tiny.say(get("/big?5000", CLOSE, method="HEAD")), bodiless=True)
    ]
    assert sizes == [5000]


# -- bodies


async def test_expect_is_met_refused_and_never_put_into_another_answer(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.write(get("/echo", "expect: 100-continue", "content-length: 2", method="POST"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ok")
    assert (await read_answer(reader)).body == b"POST /echo? ok"
    writer.write(
        get("/slow_stream") + get("/echo", "expect: 100-continue", "content-length: 2", method="POST")
    )
    await reader.readuntil(b"begin;\r\n")
    tiny.app.gate.set()
    rest = b"6\r\nbegin;\r\n" + await reader.readuntil(b"0\r\n\r\n")
    assert b"100" not in rest
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ok")
    assert (await read_answer(reader)).body == b"POST /echo? ok"
    for target, size, status in (("/forbidden", 2, 401), ("/echo", BODY_LIMIT + 1, 413)):
        answers = await tiny.ask(
            get(target, "expect: 100-continue", f"content-length: {size}", method="POST")
        )
        assert (statuses(answers), answers[0].closes) == ([status], True)
    old = get("/echo", "expect: 100-continue", "content-length: 2", method="POST", version="HTTP/1.0")
    assert statuses(await tiny.ask(old + b"ok")) == [200], "an old client knows no such answer"
    writer.close()


CHUNKED = "transfer-encoding: chunked"


async def test_chunks_with_extensions_and_trailers_are_one_body(tiny: Running) -> None:
    chunks = b'3;a=b;c="d"\r\nabc\r\n000A\r\n0123456789\r\n0;last\r\nx-t: 1\r\nauthorization: evil\r\n\r\n'
    answers = await tiny.ask(get("/echo", CHUNKED, method="POST") + chunks + get("/echo?next", CLOSE))
    assert [answer.body for answer in answers] == [b"POST /echo? abc0123456789", b"GET /echo?next "]
    assert b"x-t" not in tiny.app.seen[0].headers
    assert b"authorization" not in tiny.app.seen[0].headers


async def test_a_body_may_be_exactly_as_long_as_the_limit(tiny: Running) -> None:
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
        answers = await tiny.ask(
            post("/echo", b"x" * size) + get("/echo", CHUNKED, CLOSE, method="POST") + chunk
        )
        assert statuses(answers) == [status, status]
    ones = b"1\r\nx\r\n" * (BODY_LIMIT + 1) + b"0\r\n\r\n"
    assert statuses(await tiny.ask(get("/echo", CHUNKED, CLOSE, method="POST") + ones)) == [413]


@pytest.mark.parametrize("pieces", [1, 3, 50])
async def test_a_head_may_be_exactly_as_long_as_the_limit(tiny: Running, pieces: int) -> None:
    bare = len(get("/echo", CLOSE, "x: "))
    for more, status in ((0, 200), (1, 431), (100_000, 431)):
        request = get("/echo", CLOSE, "x: " + "y" * (Limits.head_bytes - bare + more))
        step = len(request) // pieces + 1
        cuts = [request[start : start + step] for start in range(0, len(request), step)]
        answers = await tiny.ask(*cuts)
        assert (statuses(answers), answers[0].closes) == ([status], True), (len(request), pieces)


async def test_a_head_may_be_behind_a_long_body(tiny: Running) -> None:
    refused = post("/forbidden", b"x" * 200_000)
    answers = await tiny.ask(refused + refused + get("/echo", "x: " + "y" * 50_000, CLOSE))
    assert statuses(answers) == [401, 401, 200]


async def test_a_target_of_any_length_is_refused_in_the_end(tiny: Running) -> None:
    assert statuses(await tiny.ask(get("/" + "a" * 60_000, CLOSE))) == [200]
    assert statuses(await tiny.ask(b"GET /" + b"a" * 1_000_000)) == [431]


@pytest.mark.parametrize("endless", [b"x: " + b"y" * 1000, b"x: y\r\n" * 100, b"\r\n" * 500])
async def test_a_head_without_end_is_refused(tiny: Running, endless: bytes) -> None:
    start = b"" if endless.startswith(b"\r") else b"GET / HTTP/1.1\r\nhost: x\r\n"
    said = await tiny.say(start, *[endless] * 200)
    assert statuses(answers_of(said)) in ([431], [400])


async def test_trailers_and_extensions_without_end_are_cut_off(tiny: Running) -> None:
    head = get("/echo", CHUNKED, method="POST")
    for start, endless in (
        (b"0\r\nx: ", b"y" * 10_000),
        (b"0\r\n", b"x: y\r\n" * 1000),
        (b"3;x=", b"y" * 10_000),
    ):
        said = await tiny.say(head + start, *[endless] * 100)
        assert statuses(answers_of(said)) in ([400], [413], [431])


async def test_a_body_in_tiny_pieces_takes_no_more_memory_than_it_is_long(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.write(get("/echo", CHUNKED, method="POST") + b"2\r\nab\r\n" * (BODY_LIMIT // 2))
    await eventually(lambda: [c for c in tiny.server.connections if c._size == BODY_LIMIT])
    (connection,) = tiny.server.connections
    assert sum(map(len, gc.get_referents(connection._body))) == 0
    assert len(connection._body) == BODY_LIMIT
    writer.write(b"0\r\n\r\n")
    assert (await read_answer(reader)).body == b"POST /echo? " + b"ab" * (BODY_LIMIT // 2)
    writer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_whoever_still_sends_sees_why_it_is_refused(tiny: Running, chunked: bool) -> None:
    size = 50_000_000
    framing = CHUNKED if chunked else f"content-length: {size}"
    reader, writer = await tiny.dial()
    writer.write(get("/forbidden", framing, method="POST"))
    piece = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000) if chunked else b"x" * 100_000
    for _ in range(size // 100_000):
        writer.write(piece)
        await writer.drain()
    answers = answers_of(await asyncio.wait_for(reader.read(), 10))
    assert (statuses(answers), answers[0].closes) == ([401], True)
    writer.close()


async def test_whoever_still_sends_a_head_sees_why_it_is_refused(tiny: Running) -> None:
    for start in (b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nx: "):
        reader, writer = await tiny.dial()
        writer.write(start)
        for _ in range(50):
            writer.write(b"y" * 100_000)
            await writer.drain()
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 4")
        writer.close()


# -- what could be read in two ways


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 5"),
        ("content-length: 5", "content-length: 5"),
        ("content-length: 5", "content-length: 6"),
        *(
            (f"content-length: {value}",)
            for value in ("+5", "-5", "5, 5", "0x5", "5_0", "", "5 5", "٥", "9" * 20)
        ),
        ("content-length : 5",),
        ("content-length\t: 5",),
        (" content-length: 5",),
        ("x: y\r\n content-length: 5",),
        ("transfer-encoding : chunked",),
        *(
            (f"transfer-encoding: {value}",)
            for value in (
                *("xchunked", "chunked, identity", "identity", "gzip, chunked", '"chunked"', "chunked;q=1"),
                *("chunked,", "", "\x0bchunked", "chunked\x00", "chunked, chunked", "identity, chunked"),
            )
        ),
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        ("transfer-encoding: identity", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "transfer-encoding: identity"),
        ("transfer-encoding:\r\n chunked",),
        ("x: y\x00z",),
        ("x\x00y: z",),
        ("x: y\rcontent-length: 5",),
        ("x: y\ncontent-length: 5",),
        (": y",),
        ("no colon",),
        ("host: y",),
        ("authorization: Bearer a", "authorization: Bearer b"),
        ("x-api-key: a", "x-api-key: b"),
        ("content-type: a", "content-type: b"),
    ],
)
async def test_ambiguous_heads_are_refused(tiny: Running, lines: tuple[str, ...]) -> None:
    head = "\r\n".join(["POST /echo HTTP/1.1", "host: x", *lines, "", ""]).encode("utf-8")
    answers = await tiny.ask(head + b"0\r\n\r\n" + get("/echo?smuggled"))
    assert (statuses(answers), answers[0].closes) == ([400], True)
    assert tiny.app.seen == []


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /echo HTTP/1.1\nhost: x\n\n",
        b"GET /echo HTTP/1.1\r\nhost: x\n\r\n",
        b"GET /echo HTTP/1.1\r\n\r\n",
        b"GET /echo\r\n\r\n",
        b"GET /echo HTTP/0.9\r\n\r\n",
        b"GET /echo HTTP/1.2\r\nhost: x\r\n\r\n",
        b"GET /echo HTTP/2.0\r\nhost: x\r\n\r\n",
        b"GET /echo HTTP/1.1 \r\nhost: x\r\n\r\n",
        b"get /echo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET\t/echo\tHTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /ec\0ho HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET echo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"POST /echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 3\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused(tiny: Running, request_: bytes) -> None:
    answers = await tiny.ask(request_ + get("/echo?smuggled"))
    assert len(answers) == 1
    assert answers[0].status in (400, 505)
    assert answers[0].closes
    assert tiny.app.seen == []


async def test_odd_targets(tiny: Running) -> None:
    answers = await tiny.ask(
        get("http://elsewhere:80/echo?a=b") + get("*", method="OPTIONS") + get("//echo", CLOSE)
    )
    assert statuses(answers) == [200, 200, 200]
    assert [request.path for request in tiny.app.seen] == ["/echo", "*", "//echo"]
    answers = await tiny.ask(get("HTTPS://elsewhere", CLOSE))
    assert [request.path for request in tiny.app.seen[3:]] == ["/"]
    answers = await tiny.ask(
        get("a:80", "content-length: 3", method="CONNECT") + b"abc" + get("/echo?tunnelled")
    )
    assert (statuses(answers), answers[0].closes) == ([200], True)
    assert b"tunnelled" not in b"".join(request.query for request in tiny.app.seen)


@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_an_offer_of_http_2_is_not_taken_up(tiny: Running, body: bytes) -> None:
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    request = post("/echo", body, *offer)
    for pieces in ([request], [request[start : start + 1] for start in range(len(request))]):
        answers = await tiny.ask(get("/echo?1"), *pieces, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert [answer.body for answer in answers] == [b"GET /echo?1 ", b"POST /echo? " + body]
        assert answers[1].closes
    answers = await tiny.ask(get("/echo", CHUNKED, *offer, method="POST") + b"0\r\n\r\n")
    assert statuses(answers) == [400]
    refused = await tiny.ask(post("/forbidden", body, *offer) + get("/echo?after"))
    assert (statuses(refused), refused[0].closes) == ([401], True)


async def test_no_header_value_splits_a_response(tiny: Running) -> None:
    for value in (b"a\r\nset-cookie: evil=1", b"a\nb", b"a\rb", b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"):
        said = await tiny.say(post("/header", value, CLOSE))
        answers = answers_of(said)
        assert statuses(answers) == [500], said
    plain = await tiny.ask(post("/header", "grüße".encode("latin-1"), CLOSE))
    assert plain[0].headers[b"x-from-outside"] == "grüße".encode("latin-1")


async def test_header_values_need_not_be_ascii(tiny: Running) -> None:
    answers = await tiny.ask(get("/echo", "x: é\xff", "user-agent: \xfc", CLOSE))
    assert statuses(answers) == [200]
    assert tiny.app.seen[0].headers[b"x"] == b"\xe9\xff"


# -- handlers that fail


async def test_a_handler_that_fails_before_its_answer_is_a_500(tiny: Running) -> None:
    for target in ("/crash", "/silent", "/broken-door"):
        answers = await tiny.ask(get(target) + get("/echo?after", CLOSE))
        assert statuses(answers) == [500, 200]


async def test_a_handler_that_fails_within_its_answer_breaks_it_off(tiny: Running) -> None:
    said = await tiny.say(get("/echo?before") + get("/crash_late") + get("/echo?after"))
    first, rest = cut(said)
    assert first.body == b"GET /echo?before "
    assert rest.endswith(b"4\r\nhalf\r\n"), "never ended as if it were whole"
    assert [request.query for request in tiny.app.seen if request.path == "/echo"] == [b"before"]


@pytest.mark.parametrize("ending", ["close", "reset", "half"])
@pytest.mark.parametrize("target", ["/hang", "/slow_stream", "/flood?10000"])
async def test_a_handler_is_cancelled_when_its_client_goes(tiny: Running, target: str, ending: str) -> None:
    _reader, writer = await tiny.dial()
    writer.write(get(target) + get("/echo?after"))
    await eventually(lambda: tiny.app.running == 1)
    if "flood" in target:
        await eventually(lambda: tiny.app.written > 100_000)
    if ending == "reset":
        hard_close(writer)
    elif ending == "half":  # cannot be told from a client that is gone
        writer.write_eof()
        if "flood" in target:
            writer.close()
    else:
        writer.close()
    await eventually(lambda: tiny.app.cancelled == 1)
    await eventually(lambda: not tiny.server.connections)
    assert len(tiny.app.seen) == 1, "nobody waits for what is behind it"
    writer.close()


# -- time


async def test_a_client_that_dawdles_over_a_request_is_told_so() -> None:
    async with running(brief()) as tiny:
        half = get("/echo", "content-length: 9", method="POST")
        for start in (b"G", b"GET / HTTP/1.1\r\nx: ", half, half + b"1234"):
            began = time.monotonic()
            assert (await tiny.say(start)).startswith(b"HTTP/1.1 408"), start
            assert 0.3 < time.monotonic() - began < 1.5
        assert await tiny.say() == b"", "whoever says nothing is told nothing"


async def test_a_drop_now_and_then_buys_no_time() -> None:
    async with running(brief()) as tiny:
        reader, writer = await tiny.dial()
        writer.write(b"GET /echo HTTP/1.1\r\n")
        began = time.monotonic()
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b"x: y\r\n")
            await asyncio.wait((answer,), timeout=0.05)
            assert time.monotonic() - began < 2.5
        with contextlib.suppress(ConnectionError):
            assert (await answer).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_an_idle_connection_is_closed_in_time() -> None:
    async with running(brief()) as tiny:
        for target in ("/echo", "/big?2000000", "/flood?300"):
            reader, writer = await tiny.dial()
            writer.write(get(target))
            began = time.monotonic()
            await asyncio.wait_for(reader.read(), 5)
            assert time.monotonic() - began < 3, f"{target} left a connection that never ends"
            writer.close()


@pytest.mark.parametrize("target", ["/big?20000000", "/flood?2000"])
async def test_a_client_that_takes_nothing_is_dropped(target: str) -> None:
    async with running(brief()) as tiny:
        for more in ((), (CLOSE,)):
            _reader, writer = await tiny.dial()
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # StreamWriter has a Transport
            writer.write(get(target, *more))
            await eventually(lambda: tiny.server.connections)
            await eventually(lambda: not tiny.server.connections, 4)
            writer.close()


async def test_a_client_that_takes_its_time_is_not_dropped() -> None:
    async with running(brief()) as tiny:
        reader, writer = await asyncio.open_connection("127.0.0.1", tiny.port, limit=50_000)
        writer.write(get("/big?12000000", CLOSE))
        size, began = 0, time.monotonic()
        while piece := await reader.read(100_000):
            size += len(piece)
            if time.monotonic() - began < 2:
                await asyncio.sleep(0.02)
        assert size > 12_000_000
        writer.close()


async def test_a_client_that_asks_and_asks_and_takes_nothing_fills_no_memory(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # StreamWriter has a Transport
    for _ in range(60):
        writer.write(get("/big?1000000"))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(writer.drain(), 0.5)
    await asyncio.sleep(0.2)
    assert len(tiny.app.seen) < 30
    writer.transport.resume_reading()  # type: ignore[attr-defined]  # StreamWriter has a Transport
    writer.write(get("/echo", CLOSE))
    answers = answers_of(await asyncio.wait_for(reader.read(), 30))
    assert len(answers) == 61
    writer.close()


async def test_a_stream_waits_for_its_reader(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # StreamWriter has a Transport
    writer.write(get("/flood?3000", CLOSE))
    await eventually(lambda: tiny.app.written > 0)
    before = -1
    while before != tiny.app.written:
        before = tiny.app.written
        await asyncio.sleep(0.1)
    assert before < 20_000_000
    writer.transport.resume_reading()  # type: ignore[attr-defined]  # StreamWriter has a Transport
    (answer,) = answers_of(await asyncio.wait_for(reader.read(), 20))
    assert len(answer.body) == 30_000_000
    writer.close()


# -- the end of the server


async def test_idle_connections_are_closed_and_requests_finish(tiny: Running) -> None:
    idle, idle_writer = await tiny.dial()
    idle_writer.write(get("/echo"))
    await read_answer(idle)
    active, active_writer = await tiny.dial()
    active_writer.write(get("/wait?1") + get("/echo?2"))
    streaming, streaming_writer = await tiny.dial()
    streaming_writer.write(get("/slow_stream"))
    half, half_writer = await tiny.dial()
    half_writer.write(get("/echo", "content-length: 4", method="POST") + b"12")
    await eventually(lambda: tiny.app.running == 2)
    await eventually(lambda: [c for c in tiny.server.connections if c._size == 2])
    stopping = asyncio.ensure_future(tiny.server.stop(5))
    assert await idle.read() == b""
    half_writer.write(b"34")
    (answer,) = answers_of(await asyncio.wait_for(half.read(), 5))
    assert (answer.body, answer.closes) == (b"POST /echo? 1234", True)
    with pytest.raises(OSError):
        await tiny.dial()
    tiny.app.gate.set()
    answers = answers_of(await asyncio.wait_for(active.read(), 5))
    assert [answer.body for answer in answers] == [b"GET /wait?1 ", b"GET /echo?2 "]
    assert [answer.closes for answer in answers] == [False, True]
    (answer,) = answers_of(await asyncio.wait_for(streaming.read(), 5))
    assert answer.body == b"begin;end"
    for writer in (idle_writer, active_writer, streaming_writer, half_writer):
        writer.close()
    began = time.monotonic()
    await stopping
    assert time.monotonic() - began < 1


async def test_what_does_not_finish_is_broken_off_and_waited_for(tiny: Running) -> None:
    reader, writer = await tiny.dial()
    writer.write(get("/hang") + get("/echo?after"))
    await eventually(lambda: tiny.app.running == 1)
    await tiny.server.stop(0.1)
    assert (tiny.app.running, tiny.app.cancelled) == (0, 1), "its end is part of the stop"
    assert await reader.read() == b""
    assert len(tiny.app.seen) == 1
    writer.close()


async def test_a_handler_whose_client_went_is_waited_for(tiny: Running) -> None:
    _, writer = await tiny.dial()
    writer.write(get("/hang"))
    await eventually(lambda: tiny.app.running == 1)
    writer.close()
    await eventually(lambda: tiny.app.cancelled == 1)
    await tiny.server.stop(5)
    assert tiny.app.running == 0


# -- nothing is left


async def test_no_connection_outlives_its_end(tiny: Running) -> None:
    found: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        for target in ("/echo", "/stream", "/hang", "/forbidden", "/big?1000000", "/slow_stream"):
            reader, writer = await tiny.dial()
            writer.write(get(target))
            await eventually(lambda: tiny.server.connections)
            found += [weakref.ref(each) for each in tiny.server.connections]
            if target not in ("/hang", "/slow_stream"):
                await reader.read(1)
            writer.close()
            await eventually(lambda: not tiny.server.connections)
            del reader, writer
        await eventually(lambda: not [ref for ref in found if ref() is not None], 3)
    finally:
        gc.enable()


async def test_ten_thousand_idle_connections_cost_little_to_look_at(tiny: Running) -> None:
    from gateway.connection import Connection

    later = tiny.server.time() + 1000
    for _ in range(10_000):
        connection = Connection(tiny.server)
        connection.deadline = later
        tiny.server.connections.add(connection)
    began = time.process_time()
    tiny.server._sweeper.cancel()  # type: ignore[union-attr]  # it listens
    tiny.server._sweep()
    assert time.process_time() - began < 0.02
    tiny.server.connections.clear()


# -- properties

REQUESTS = st.lists(
    st.sampled_from(
        [
            get("/echo?a"),
            get("/stream"),
            get("/echo", method="OPTIONS"),
            post("/echo", b"some body"),
            post("/echo", b"x" * (BODY_LIMIT + 1)),
            post("/forbidden", b"y" * 50),
            get("/echo", CHUNKED, method="POST") + b"3;e=1\r\nabc\r\n2\r\nde\r\n0\r\nt: u\r\n\r\n",
            get("/forbidden", CHUNKED, method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
            get("http://x/echo?absolute"),
            b"\r\n" + get("/crash"),
        ]
    ),
    max_size=8,
)
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


async def timeless(tiny: Running, *pieces: bytes) -> list[tuple[int, bytes, bool]]:
    return [(answer.status, answer.body, answer.closes) for answer in await tiny.ask(*pieces)]


async def test_it_does_not_matter_how_the_network_cuts(tiny: Running) -> None:
    """Async tests and hypothesis do not mix: the examples are drawn first, and then tried."""
    examples: list[tuple[bytes, list[int]]] = []

    @PROPERTY
    @given(st.data(), REQUESTS)
    def draw(data: st.DataObject, requests: list[bytes]) -> None:
        whole = b"".join(requests) + get("/echo?last", CLOSE)
        cuts = data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=30, unique=True))
        examples.append((whole, sorted(cuts)))

    draw()
    for whole, cuts in examples:
        pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert await timeless(tiny, *pieces) == await timeless(tiny, whole)


async def test_it_does_not_matter_if_each_byte_comes_alone(tiny: Running) -> None:
    whole = get("/echo?a") + post("/echo", b"body") + post("/forbidden", b"x") + get("/stream", CLOSE)
    alone = [whole[place : place + 1] for place in range(len(whole))]
    assert await timeless(tiny, *alone) == await timeless(tiny, whole)


FRAGMENTS = st.sampled_from(
    [
        *(
            b"GET ",
            b"POST ",
            b"HEAD ",
            b"CONNECT ",
            b"PRI ",
            b"/echo",
            b"/stream",
            b"/hang",
            b"*",
            b"http://x/",
        ),
        *(
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
            b" HTTP/2.0\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\0",
        ),
        *(b"host: x\r\n", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"upgrade: h2c\r\n"),
        *(
            b"connection: upgrade\r\n",
            b"connection: close\r\n",
            b"expect: 100-continue\r\n",
            b"5\r\nhello\r\n",
        ),
        *(b"0\r\n\r\n", b"hello", b"x: y\r\n", b"\xff\xfe", get("/echo"), post("/echo", b"hello")),
    ]
)


async def test_garbage_ends_the_connection_and_nothing_else() -> None:
    examples: list[bytes] = []

    @PROPERTY
    @given(st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=25).map(b"".join)))
    def draw(garbage: bytes) -> None:
        examples.append(garbage)

    draw()
    limits = brief()
    limits.request_seconds = limits.idle_seconds = 0.3
    async with running(limits) as tiny:
        tiny.app.hang = tiny.app.echo  # type: ignore[method-assign]  # all else has an end of its own
        said = await asyncio.gather(*(tiny.say(garbage) for garbage in examples))
        for garbage, answer in zip(examples, said, strict=True):
            assert not answer or answer.startswith(b"HTTP/1.1 "), garbage
        assert statuses(await tiny.ask(get("/echo", CLOSE))) == [200]
        await eventually(lambda: not tiny.server.connections)


def test_the_parser_is_a_strict_one() -> None:
    """What is refused above is refused by it; a lenient build would change what is safe."""
    parser = httptools.HttpRequestParser(object())
    with pytest.raises(httptools.HttpParserError):
        parser.feed_data(b"GET / HTTP/1.1\nhost: x\n\n")
