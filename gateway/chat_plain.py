"""Answers a chat completion in one piece."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.asgi import ClientWatch, Header, Send, send_json
from gateway.errors import InvalidAnswerError
from gateway.exchange import Exchange, settle
from gateway.interaction import Bill, Outcome
from gateway.provider import Answer, Provider


async def reply(exchange: Exchange, send: Send, watch: ClientWatch) -> None:
    """Ask, guard, log, answer. Raises ``UpstreamError`` while nothing was sent."""
    answer = await exchange.ask(_complete)
    payload, call = answer.payload, exchange.call
    assert call.chat is not None
    exchange.guard.check_answer(payload)
    payload["id"] = f"chatcmpl-{call.id}"
    payload["model"] = call.chat.model
    try:
        body = orjson.dumps(payload)
    except TypeError as error:
        raise InvalidAnswerError(f"the answer cannot be passed on: {error}") from None
    outcome = settle(call, exchange.guard, payload, answer.waited_seconds)
    cost = exchange.record(outcome)
    watch.answered = True
    headers = [*exchange.headers(), *_price_headers(outcome, cost)]
    await send_json(send, 200, body, headers)


async def _complete(provider: Provider, request: dict[str, Any]) -> Answer:
    return await provider.complete(request)


def _price_headers(outcome: Outcome, cost: Bill | None) -> list[Header]:
    headers = [(b"x-meta-agent-overhead-ms", b"%.3f" % (max(0.0, outcome.overhead_seconds) * 1000))]
    if cost is not None:
        headers.append((b"x-meta-agent-cost-usd", format(cost.cost_usd, "f").encode()))
    return headers
