"""Answers a chat completion piece by piece, and never restarts what a reader has begun to read."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from gateway import sse
from gateway.asgi import ClientWatch, Send
from gateway.errors import InvalidAnswerError, UpstreamError, internal
from gateway.exchange import Exchange, broken, failure
from gateway.interaction import Outcome
from gateway.provider import Provider
from storage.vocabulary import InteractionStatus

_log = logging.getLogger(__name__)

Chunks = AsyncGenerator[list[dict[str, Any]], None]


@dataclass(slots=True)
class _Opened:
    """A stream whose first chunks have come."""

    first: list[dict[str, Any]]
    rest: Chunks
    waited_seconds: float


async def reply(exchange: Exchange, send: Send, watch: ClientWatch) -> None:
    """Ask, then forward what the guard lets pass. Raises ``UpstreamError`` while nothing was sent."""
    opened = await exchange.ask(_open)
    stream = _Stream(exchange, opened)
    try:
        await stream.forward(send, watch)
    except BaseException:
        # The client went away, or we broke: the provider should stop, and the log keep what was read.
        with contextlib.suppress(UpstreamError):
            await opened.rest.aclose()
        if watch.gone:
            exchange.record(stream.cancelled())
            watch.answered = True
        raise


async def _open(provider: Provider, request: dict[str, Any]) -> _Opened:
    started = time.perf_counter()
    rest = provider.stream(request)
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
        chat = exchange.call.chat
        assert chat is not None
        self._model = chat.model
        self._id = f"chatcmpl-{exchange.call.id}"
        self._wants_usage = chat.wants_usage
        self._usage: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}
        self._ttft = exchange.call.elapsed
        self._overhead = self._ttft - opened.waited_seconds - exchange.call.lost_seconds

    async def forward(self, send: Send, watch: ClientWatch) -> None:
        """Send the whole stream. Its row is written before its last piece leaves."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
        try:
            end = await self._forward_chunks(send)
        except UpstreamError as error:
            told = self._exchange.told(error)
            outcome = failure(self._exchange.call, error, told, self._guard.text)
            outcome.findings = self._guard.findings
            self._finish(outcome)
            end = sse.event(told.as_dict()) + sse.DONE
        except Exception as error:
            _log.exception("streaming %s failed", self._exchange.call.id)
            self._finish(broken(self._exchange.call, error))
            end = sse.event(internal(self._exchange.call.id).as_dict()) + sse.DONE
        else:
            status = InteractionStatus.BLOCKED if self._guard.blocked else InteractionStatus.OK
            self._finish(self._outcome(status, self._guard.finish_reason))
        watch.answered = True
        await send({"type": "http.response.body", "body": end})

    async def _forward_chunks(self, send: Send) -> bytes:
        chunks: list[dict[str, Any]] | None = self._opened.first
        while chunks is not None:
            body = b"".join(self._pass(chunk) for chunk in chunks if self._guard.blocked is None)
            if self._guard.blocked is not None:
                return body + await self._stop()
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            chunks = await anext(self._opened.rest, None)
        held = b"".join(sse.event(chunk) for chunk in self._guard.flush_all(self._last))
        if self._guard.blocked is not None:
            return held + await self._stop()
        return held + sse.DONE

    def _pass(self, chunk: dict[str, Any]) -> bytes:
        """The bytes to forward for one chunk."""
        usage = chunk.get("usage") if self._wants_usage else chunk.pop("usage", None)
        if isinstance(usage, dict):
            self._usage = usage
            if not self._wants_usage and not chunk.get("choices"):
                return b""  # the chunk that only we asked for
        chunk["id"] = self._id
        chunk["model"] = self._model
        self._last = chunk
        passed = self._guard.check_chunk(chunk)
        if self._guard.blocked is not None:
            # The chunk may end the choice, and the closing chunk does that.
            for choice in chunk["choices"]:
                choice["finish_reason"] = None
        return b"".join(map(sse.event, passed))

    async def _stop(self) -> bytes:
        """End a blocked stream: the provider stops, the client learns why."""
        self._guard.finish_reason = "content_filter"
        with contextlib.suppress(UpstreamError):
            await self._opened.rest.aclose()
        return sse.event(self._guard.closing_chunk(self._last)) + sse.DONE

    def cancelled(self) -> Outcome:
        """How the stream ended for a client that went away."""
        return self._outcome(InteractionStatus.CANCELLED, None)

    def _outcome(self, status: InteractionStatus, finish_reason: str | None) -> Outcome:
        return Outcome(
            status=status,
            http_status=200,
            text=self._guard.text,
            finish_reason=finish_reason,
            usage=self._usage,
            findings=self._guard.findings,
            latency_seconds=self._exchange.call.elapsed,
        )

    def _finish(self, outcome: Outcome) -> None:
        outcome.ttft_seconds = self._ttft
        outcome.overhead_seconds = self._overhead
        self._exchange.record(outcome)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self._exchange.headers(),
            (b"x-meta-agent-overhead-ms", b"%.3f" % (max(0.0, self._overhead) * 1000)),
        ]
