"""One surface's endpoint: admission, then a plain or a streamed answer, then its line in the log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from gateway import plain, stream
from gateway.admission import (
    check_size,
    choose_use_case,
    claims_of,
    draw,
    note_people,
    pin,
    take_allowance,
    within_budget,
)
from gateway.chat_request import check_chat, parse_body
from gateway.errors import ApiError, UpstreamError, internal
from gateway.exchange import Exchange, broken, cancelled, failure
from gateway.http_message import Header, Reply, Request
from gateway.interaction import Call, Outcome, Target
from gateway.replies import send_error
from gateway.routing import is_mirrored
from gateway.services import Services
from gateway.shadow import Shadows
from gateway.surface import Asked, Surface
from gateway.tracing import trace_of
from storage.routing import RoutingSnapshot
from storage.vocabulary import Arm, InteractionKind, InteractionStatus

_log = logging.getLogger(__name__)


class Completions:
    """The handler; one for each surface, for the life of the process."""

    def __init__(self, services: Services, shadows: Shadows, surface: Surface) -> None:
        self._services = services
        self._shadows = shadows
        self._surface = surface

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Answer one request, whatever it holds."""
        call = Call(key=request.admitted, surface=self._surface.name)
        try:
            exchange = self._open(call, request)
        except ApiError as error:
            self._refuse(call, error)
            send_error(reply, error, self._refusal_headers(call, error), self._surface.error)
            return
        try:
            await self._answer(exchange, reply)
        finally:
            exchange.close()
        self._mirror(exchange)

    def _open(self, call: Call, request: Request) -> Exchange:
        """Decide who is asked, and take what the request may use up."""
        services = self._services
        snapshot = services.snapshot()
        body = parse_body(request.body)
        release = choose_use_case(call, body, snapshot)
        check_size(call, len(request.body))
        chat = self._surface.read(body)
        call.stream = self._check(chat)
        note_people(call, chat)
        call.body = chat
        call.trace = trace_of(request.headers.get(b"traceparent"), begin=services.config.traces)
        target = self._choose(call, snapshot, release, request)
        take_allowance(call, services.limiter, services.time(), len(request.body))
        asked = Asked(call.id, call.model, body, int(call.at.timestamp()))
        return Exchange(services, call, within_budget(call, target, services.metrics), self._surface, asked)

    def _check(self, body: dict[str, Any]) -> bool:
        """Refuse what nobody could answer; whether a stream is wanted."""
        return check_chat(body)

    def _choose(self, call: Call, snapshot: RoutingSnapshot, release: str | None, request: Request) -> Target:
        if release is None:
            return draw(call, snapshot)
        return pin(call, snapshot, release, request.headers.get(b"x-meta-agent-purpose"))

    def _refusal_headers(self, call: Call, error: ApiError) -> list[Header]:
        headers = [(name, call.id.encode()) for name in self._surface.id_headers]
        if error.status == 429 and call.use_case is not None:
            headers += self._services.limiter.headers_for(claims_of(call))
        return headers

    def _refuse(self, call: Call, error: ApiError) -> None:
        """A refusal is logged where somebody can be charged with it, and counted anywhere else."""
        if call.use_case is None:
            self._services.metrics.count_refusal(error.code or str(error.status))
            return
        call.body = None  # nobody has answered it: nothing can be learned from it
        outcome = Outcome(
            status=InteractionStatus.REJECTED,
            http_status=error.status,
            error_type=error.code,
            error_message=error.message,
            latency_seconds=call.elapsed,
            overhead_seconds=call.elapsed,
        )
        self._services.record(call, None, outcome)

    async def _answer(self, exchange: Exchange, reply: Reply) -> None:
        try:
            await self._reply(exchange, reply)
        except UpstreamError as error:
            told = exchange.told(error)
            exchange.warn(error)
            exchange.record(failure(exchange.call, error, told))
            send_error(reply, told, exchange.headers(), self._surface.error)
        except ApiError as error:  # the deployment made it plain that nobody should be asked this
            exchange.status = InteractionStatus.REJECTED
            self._refuse(exchange.call, error)
            send_error(reply, error, exchange.headers(), self._surface.error)
        except asyncio.CancelledError:
            if exchange.status is None:
                exchange.record(cancelled(exchange.call))
            raise
        except Exception as error:
            self._break(exchange, error, reply)

    async def _reply(self, exchange: Exchange, reply: Reply) -> None:
        await (stream if exchange.call.stream else plain).answer(exchange, reply)

    def _break(self, exchange: Exchange, error: Exception, reply: Reply) -> None:
        """Our own fault: the log says so, and the client learns it in a shape it knows."""
        _log.exception("answering %s failed", exchange.call.id, extra=exchange.call.traced())
        if exchange.status is None:
            exchange.record(broken(exchange.call, error))
        if reply.started:
            reply.break_off()
        else:
            send_error(reply, internal(exchange.call.id), exchange.headers(), self._surface.error)

    def _mirror(self, exchange: Exchange) -> None:
        call, target = exchange.call, exchange.target
        live = call.kind is InteractionKind.LIVE and target.arm is Arm.STABLE and call.fallback_of is None
        ended = exchange.status is not InteractionStatus.CANCELLED
        if live and ended and call.route is not None and is_mirrored(call.route, call.id):
            self._shadows.mirror(call, target)
