"""POST /v1/embeddings: routed, limited and logged like every other call. There is no text to guard."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.chat_request import check_embeddings
from gateway.completions import Completions
from gateway.errors import ApiError, InvalidAnswerError, UpstreamStatusError
from gateway.exchange import Exchange, settled
from gateway.http_message import Reply
from gateway.provider import Answer, Provider, Terms
from gateway.replies import send_json
from gateway.surface import Asked
from gateway.surfaces.chat import ChatWriter

#: What a server of a chat model answers.
_NO_SUCH_THING = frozenset({404, 405, 501})


class EmbeddingsSurface:
    """See ``gateway.surface.Surface``. The gateway's own form of such a request is OpenAI's too."""

    name = "embeddings"
    id_headers: tuple[bytes, ...] = (b"x-request-id",)

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body as it is."""
        return body

    def answer(self, payload: dict[str, Any], asked: Asked) -> dict[str, Any]:
        """The payload under our name."""
        payload["model"] = asked.model
        return payload

    def writer(self, asked: Asked) -> ChatWriter:
        """Embeddings are not streamed."""
        raise ApiError(400, "Embeddings are not streamed.", code="invalid_type", param="stream")

    def error(self, error: ApiError) -> bytes:
        """OpenAI's error object."""
        return error.body()


class Embeddings(Completions):
    """The handler."""

    def _check(self, body: dict[str, Any]) -> bool:
        check_embeddings(body)
        return False

    async def _reply(self, exchange: Exchange, reply: Reply) -> None:
        found = await exchange.ask(_embed)
        payload = found.payload
        outcome = settled(exchange.call, exchange.guard, payload, found.waited_seconds)
        outcome.usage = {**(outcome.usage or {}), "completion_tokens": 0}
        try:
            body = orjson.dumps(exchange.surface.answer(payload, exchange.asked))
        except TypeError as error:
            raise InvalidAnswerError(f"the answer cannot be passed on: {error}") from None
        cost = exchange.record(outcome)
        send_json(reply, 200, body, exchange.headers(outcome.overhead_seconds, cost))

    def _mirror(self, exchange: Exchange) -> None:
        """Vectors of two models cannot be compared: no shadow is asked."""


async def _embed(provider: Provider, request: dict[str, Any], terms: Terms) -> Answer:
    try:
        return await provider.embed(request, terms)
    except UpstreamStatusError as error:
        if error.status not in _NO_SUCH_THING:
            raise
    # The caller's mistake, and nothing that could be held against the deployment.
    text = "The model behind this use case makes no embeddings. Name a use case whose model does."
    raise ApiError(400, text, code="embeddings_unsupported", param="model")
