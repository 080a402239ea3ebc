"""Calls through the library: OpenAI's requests in, OpenAI's answers out, exactly once each."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from gateway.translator import answers
from gateway.translator.exchanges import Exchange
from gateway.translator.handover import Upstream
from gateway.translator.library import Library
from gateway.translator.parameters import CHAT, EMBEDDINGS, forwarded, library_model


class IncompleteStreamError(Exception):
    """The provider's stream ended, and nothing in it said that the answer was complete."""


#: The library has a gateway for tools of its own, which would carry them out here.
_NO_TOOLS_HERE = {"_skip_mcp_handler": True}
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}, **_NO_TOOLS_HERE}


async def complete(library: Library, exchange: Exchange, request: dict[str, Any]) -> dict[str, Any]:
    """A whole chat completion."""
    arguments = _arguments(library, exchange.upstream, request, CHAT)
    with exchange.current():
        answer = await library.complete(**arguments, **_NO_TOOLS_HERE)
    return answers.completion(answer, request["model"])


async def embed(library: Library, exchange: Exchange, request: dict[str, Any]) -> dict[str, Any]:
    """Embeddings."""
    arguments = _arguments(library, exchange.upstream, request, EMBEDDINGS)
    with exchange.current():
        answer = await library.embed(**arguments)
    return answers.embeddings(answer, request["model"])


async def stream(
    library: Library, exchange: Exchange, request: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """A chat completion in pieces; raises if the provider's stream ended before its answer did."""
    arguments = _arguments(library, exchange.upstream, request, CHAT)
    with exchange.current():
        pieces = await library.complete(**arguments, **_STREAMED)
        piece = await anext(pieces, None)  # for some providers nothing is sent before this
    answer_id = piece.id if piece is not None else None
    while piece is not None:
        payload = {**answers.chunk(piece, request["model"]), "id": answer_id}  # some name each piece anew
        finished = any(choice["finish_reason"] for choice in payload["choices"])
        if finished and not (_has_reason(pieces) and exchange.has_ended):
            raise IncompleteStreamError
        yield payload
        piece = await anext(pieces, None)


def _has_reason(pieces: Any) -> bool:
    """Whether the provider said why it stopped; where it did not, the library makes up a reason."""
    return bool(pieces.received_finish_reason or pieces.intermittent_finish_reason)


def _arguments(
    library: Library, upstream: Upstream, request: dict[str, Any], known: frozenset[str]
) -> dict[str, Any]:
    return {
        "timeout": upstream.read_seconds,
        **forwarded(request, known, library.owns),
        **upstream.extra,
        "model": library_model(upstream.kind, request["model"]),
        "api_base": upstream.base_url or None,
        "api_key": upstream.api_key,
        "extra_headers": dict(upstream.headers) or None,
        "num_retries": 0,  # whoever knows the arms decides about another try
        "max_retries": 0,
    }
