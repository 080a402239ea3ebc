"""Answers piece by piece, and never restarts what a reader has begun to read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from gateway.errors import InvalidAnswerError, UpstreamError, internal
from gateway.exchange import Exchange, broken, failure
from gateway.http_message import Reply
from gateway.interaction import Bill, Outcome
from gateway.provider import Provider, Terms
from storage.vocabulary import InteractionStatus

_log = logging.getLogger(__name__)

Chunks = AsyncGenerator[list[dict[str, Any]], None]

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(slots=True)
class _Opened:
    """A stream whose first chunks have come."""

    first: list[dict[str, Any]]
    rest: Chunks
    waited_seconds: float


async def answer(exchange: Exchange, reply: Reply) -> None:
    """Ask, then forward what the guard lets pass. Raises ``UpstreamError`` while nothing was sent."""
    opened = await exchange.ask(_open)
    stream = _Stream(exchange, opened)
    try:
        await stream.forward(reply)
    except BaseException as error:
        # The client went away, or we broke: the provider should stop, and the log keep what was read.
        with contextlib.suppress(UpstreamError):
            await opened.rest.aclose()
        if isinstance(error, asyncio.CancelledError) and exchange.status is None:
            stream.cancel()
        raise


async def _open(provider: Provider, request: dict[str, Any], terms: Terms) -> _Opened:
    started = time.perf_counter()
    rest = provider.stream(request, terms)
    first = await anext(rest, None)
    if first is None:
        raise InvalidAnswerError("the stream held nothing")
    return _Opened(first, rest, time.perf_counter() - started)


class _Stream:
    """One stream to one client."""

    def __init__(self, exchange: Exchange, opened: _Opened) -> None:
        self._exchange = exchange
        self._opened = opened
        self._guard = exchange.guard
        self._writer = exchange.surface.writer(exchange.asked)
        self._usage: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}
        self._ttft = exchange.call.elapsed
        self._overhead = self._ttft - opened.waited_seconds - exchange.call.lost_seconds

    async def forward(self, reply: Reply) -> None:
        """Send the whole stream. Its row is written before its last piece leaves."""
        reply.start(200, [*_HEADERS, *self._exchange.headers(self._overhead)])
        try:
            end = await self._forward_chunks(reply)
        except UpstreamError as error:
            self._exchange.note_broken(error)
            told = self._exchange.told(error)
            self._exchange.warn(error)
            outcome = failure(self._exchange.call, error, told, self._guard)
            self._finish(outcome)
            end = self._writer.fail(told)
        except Exception as error:
            call = self._exchange.call
            _log.exception("streaming %s failed", call.id, extra=call.traced())
            self._finish(broken(self._exchange.call, error))
            end = self._writer.fail(internal(self._exchange.call.id))
        else:
            blocked = self._guard.blocked is not None
            status = InteractionStatus.BLOCKED if blocked else InteractionStatus.OK
            cost = self._finish(self._outcome(status, self._guard.finish_reason))
            end += self._exchange.closing_comment(cost) + self._writer.end()
        reply.finish(end)

    async def _forward_chunks(self, reply: Reply) -> bytes:
        """Forward all but what is said last."""
        chunks: list[dict[str, Any]] | None = self._opened.first
        rest = self._opened.rest
        while chunks is not None:
            body = b"".join([self._pass(chunk) for chunk in chunks if self._guard.blocked is None])
            if self._guard.blocked is not None:
                return body + await self._stop()
            if body:
                reply.write(body)
                if reply.stalls:
                    await reply.drain()
            chunks = await anext(rest, None)
        held = self._write(self._guard.flush_all(self._last))
        if self._guard.blocked is not None:
            return held + await self._stop()
        return held

    def _pass(self, chunk: dict[str, Any]) -> bytes:
        """The bytes to forward for one chunk."""
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        self._last = chunk
        passed = self._guard.check_chunk(chunk)
        if self._guard.blocked is not None:
            # The chunk may end the choice, and the closing chunk does that.
            for choice in chunk["choices"]:
                choice["finish_reason"] = None
        return self._write(passed)

    def _write(self, chunks: list[dict[str, Any]]) -> bytes:
        if len(chunks) == 1:
            return self._writer.chunk(chunks[0])
        return b"".join(map(self._writer.chunk, chunks))

    async def _stop(self) -> bytes:
        """End a blocked stream: the provider stops, the client learns why."""
        self._guard.finish_reason = "content_filter"
        with contextlib.suppress(UpstreamError):
            await self._opened.rest.aclose()
        return self._writer.chunk(self._guard.closing_chunk(self._last))

    def cancel(self) -> None:
        """Log a stream whose client went away."""
        self._finish(self._outcome(InteractionStatus.CANCELLED, None))

    def _outcome(self, status: InteractionStatus, finish_reason: str | None) -> Outcome:
        return Outcome(
            status=status,
            http_status=200,
            text=self._guard.text,
            characters=self._guard.characters,
            finish_reason=finish_reason,
            usage=self._usage,
            findings=self._guard.findings,
            latency_seconds=self._exchange.call.elapsed,
        )

    def _finish(self, outcome: Outcome) -> Bill | None:
        outcome.ttft_seconds = self._ttft
        outcome.overhead_seconds = self._overhead
        return self._exchange.record(outcome)
