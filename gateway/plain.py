"""Answers in one piece."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import InvalidAnswerError
from gateway.exchange import Exchange, settled
from gateway.http_message import Reply
from gateway.provider import Answer, Provider, Terms
from gateway.replies import send_json


async def answer(exchange: Exchange, reply: Reply) -> None:
    """Ask, guard, log, answer. Raises ``UpstreamError`` while nothing was sent."""
    found = await exchange.ask(_complete)
    payload = found.payload
    exchange.guard.check_answer(payload)
    outcome = settled(exchange.call, exchange.guard, payload, found.waited_seconds)
    try:
        body = orjson.dumps(exchange.surface.answer(payload, exchange.asked))
    except TypeError as error:
        raise InvalidAnswerError(f"the answer cannot be passed on: {error}") from None
    cost = exchange.record(outcome)
    send_json(reply, 200, body, exchange.headers(outcome.overhead_seconds, cost))


async def _complete(provider: Provider, request: dict[str, Any], terms: Terms) -> Answer:
    return await provider.complete(request, terms)
