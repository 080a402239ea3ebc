"""OpenAI's wire on a Unix socket, for the workers of one gateway: chat completions and embeddings.

When the worker closes its connection the call is dropped, and with it the provider's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway import sse
from gateway.translator import calls
from gateway.translator.exchanges import Exchange
from gateway.translator.faults import Fault, fault_of
from gateway.translator.handover import FAULT_HEADER, PROVIDER_HEADER, Upstream
from gateway.translator.library import Library

_log = logging.getLogger(__name__)

Call = Callable[[Library, Exchange, dict[str, Any]], Awaitable[dict[str, Any]]]


class Translator:
    """The endpoints."""

    def __init__(self, library: Library, upstreams: Mapping[str, Upstream]) -> None:
        self._library = library
        self._upstreams = upstreams
        self._secrets = [secret for each in upstreams.values() for secret in each.secrets()]

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/healthz", _healthy, methods=["GET"]),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        opened = await self._open(request)
        if isinstance(opened, Response):
            return opened
        exchange, body = opened
        if not body.get("stream"):
            return await self._whole(request, exchange, body, calls.complete)
        pieces = calls.stream(self._library, exchange, body)
        first = await self._answered(request, exchange, _first(pieces))
        if isinstance(first, Response):
            await pieces.aclose()
            return first
        return _EventStream(self._events(exchange, first, pieces))

    async def _embeddings(self, request: Request) -> Response:
        opened = await self._open(request)
        if isinstance(opened, Response):
            return opened
        return await self._whole(request, *opened, calls.embed)

    async def _open(self, request: Request) -> tuple[Exchange, dict[str, Any]] | Response:
        upstream = self._upstreams.get(request.headers.get(PROVIDER_HEADER, ""))
        if upstream is None:
            return _refusal(Fault(400, "the translator does not know this provider"))
        try:
            body = orjson.loads(await request.body())
        except orjson.JSONDecodeError:
            return _refusal(Fault(400, "the request is not JSON"))
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            return _refusal(Fault(400, "the request names no model"))
        return Exchange(upstream), body

    async def _whole(
        self, request: Request, exchange: Exchange, body: dict[str, Any], call: Call
    ) -> Response:
        answer = await self._answered(request, exchange, call(self._library, exchange, body))
        if isinstance(answer, Response):
            return answer
        await exchange.close()
        return _json(200, answer)

    async def _answered(
        self, request: Request, exchange: Exchange, work: Awaitable[dict[str, Any] | None]
    ) -> dict[str, Any] | Response:
        """What the call gives, or the error answer for it. The call ends with the caller's connection."""
        try:
            answer: dict[str, Any] | None = await _unless_gone(request, work)
        except Exception as error:
            await exchange.close()
            return _refusal(self._fault(error, exchange))
        if answer is not None:
            return answer
        await exchange.close()
        return _refusal(Fault(499, "nobody waits for the answer any more"))

    async def _events(
        self, exchange: Exchange, first: dict[str, Any], pieces: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[bytes, None]:
        try:
            yield sse.event(first)
            async for piece in pieces:
                yield sse.event(piece)
            yield sse.DONE
        except Exception as error:
            yield sse.event(_error(self._fault(error, exchange)))
        finally:
            await pieces.aclose()
            await exchange.close()

    def _fault(self, error: Exception, exchange: Exchange) -> Fault:
        fault = fault_of(error, exchange, self._secrets)
        # The error's own words may hold what was asked or answered.
        _log.warning(
            "a call of provider %s failed: status %d, fault %s, %s",
            exchange.upstream.name,
            fault.status,
            fault.fault,
            type(error).__name__,
        )
        return fault


async def _first(pieces: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """Before it is here the answer's status is not known."""
    async for piece in pieces:
        return piece
    raise calls.IncompleteStreamError


class _EventStream(Response):
    """A stream that ends when its reader goes away, also while it waits for the next event."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        gone = asyncio.ensure_future(_until_gone(receive))
        await _first_of(writing, gone)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The work's result; None if its caller went away, and the work is cancelled then."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request.receive))
    await _first_of(working, gone)
    return None if working.cancelled() else working.result()


async def _first_of(working: asyncio.Future[Any], gone: asyncio.Future[None]) -> None:
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _healthy(_request: Request) -> Response:
    return _json(200, {"status": "ok"})


def _json(status: int, payload: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(payload), status, headers, "application/json")


def _refusal(fault: Fault) -> Response:
    headers = {FAULT_HEADER: fault.fault or "", "retry-after": fault.retry_after or ""}
    return _json(fault.status, _error(fault), {name: value for name, value in headers.items() if value})


def _error(fault: Fault) -> dict[str, Any]:
    words = {"message": fault.message, "type": "upstream_error", "param": None, "code": fault.fault}
    return {"error": words}
