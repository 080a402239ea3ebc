"""POST /v1/chat/completions: admission, then a plain or a streamed answer, then its line in the log."""

from __future__ import annotations

import asyncio
import logging

from gateway import chat_plain, chat_stream
from gateway.admission import admit
from gateway.asgi import ClientWatch, Receive, Send, read_body, send_error
from gateway.errors import ApiError, ClientGoneError, UpstreamError, internal
from gateway.exchange import Exchange, broken, failure
from gateway.interaction import Call, Outcome
from gateway.keys import authenticate
from gateway.routing import is_mirrored
from gateway.services import Services
from gateway.shadow import Shadows
from storage.vocabulary import Arm, InteractionKind, InteractionStatus

_log = logging.getLogger(__name__)


class ChatEndpoint:
    """The handler; one for the life of the process."""

    def __init__(self, services: Services, shadows: Shadows) -> None:
        self._services = services
        self._shadows = shadows

    async def __call__(self, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        """Answer one request, whatever it holds."""
        call = Call()
        try:
            exchange = await self._admit(call, headers, receive)
        except ClientGoneError:
            self._services.metrics.count_refusal("client_gone")
            return
        except ApiError as error:
            self._refuse(call, error)
            await send_error(send, error, [(b"x-request-id", call.id.encode())])
            return
        await self._answer(exchange, receive, send)
        self._mirror(exchange)

    async def _admit(self, call: Call, headers: dict[bytes, bytes], receive: Receive) -> Exchange:
        snapshot = self._services.snapshot()
        call.key = authenticate(snapshot, headers.get(b"authorization"))
        raw = await read_body(receive, headers, self._services.config.max_body_bytes)
        target = admit(call, call.key, snapshot, raw, headers.get(b"x-meta-agent-purpose"))
        return Exchange(self._services, call, target)

    def _refuse(self, call: Call, error: ApiError) -> None:
        """A refusal is logged where somebody can be charged with it, and counted anywhere else."""
        if call.key is None or call.use_case is None:
            self._services.metrics.count_refusal(error.code or str(error.status))
            return
        outcome = Outcome(
            status=InteractionStatus.REJECTED,
            http_status=error.status,
            error_type=error.code,
            error_message=error.message,
            latency_seconds=call.elapsed,
            overhead_seconds=call.elapsed,
        )
        self._services.record(call, None, outcome)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        assert exchange.call.chat is not None
        module = chat_stream if exchange.call.chat.stream else chat_plain
        with ClientWatch(receive) as watch:
            try:
                await module.reply(exchange, send, watch)
            except UpstreamError as error:
                told = exchange.told(error)
                exchange.record(failure(exchange.call, error, told))
                watch.answered = True
                await send_error(send, told, exchange.headers())
            except asyncio.CancelledError:
                if not watch.answered:
                    exchange.record(_cancelled(exchange.call))
                if not watch.gone:
                    raise
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
            except Exception as error:
                await self._break(exchange, error, send, watch)

    async def _break(self, exchange: Exchange, error: Exception, send: Send, watch: ClientWatch) -> None:
        """Our own fault: the log says so, and the client learns it in a shape it knows."""
        _log.exception("answering %s failed", exchange.call.id)
        if watch.answered:
            return
        exchange.record(broken(exchange.call, error))
        watch.answered = True
        await send_error(send, internal(exchange.call.id), exchange.headers())

    def _mirror(self, exchange: Exchange) -> None:
        call, target = exchange.call, exchange.target
        live = call.kind is InteractionKind.LIVE and target.arm is Arm.STABLE and call.fallback_of is None
        ended = exchange.status is not InteractionStatus.CANCELLED
        if live and ended and call.route is not None and is_mirrored(call.route, call.id):
            self._shadows.mirror(call, target)


def _cancelled(call: Call) -> Outcome:
    return Outcome(
        status=InteractionStatus.CANCELLED,
        http_status=499,
        error_type="client_gone",
        error_message="the client went away before the answer",
        latency_seconds=call.elapsed,
    )
