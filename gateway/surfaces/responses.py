"""POST /v1/responses: OpenAI's newer way of asking, without its memory and without tools of the server's own.

What chat completions cannot say is refused by name; what they can, survives the way there and back,
signed thinking and cache marks included.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ApiError
from gateway.surface import Asked
from gateway.surfaces.responses_object import ResponseObject, cut_off, wants_summary
from gateway.surfaces.responses_output import Output, logprobs_of
from gateway.surfaces.responses_request import read_request
from gateway.surfaces.responses_stream import ResponsesWriter


class ResponsesSurface:
    """See ``gateway.surface.Surface``."""

    name = "responses"
    id_headers: tuple[bytes, ...] = (b"x-request-id",)

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """See ``gateway.surface.Surface``."""
        return read_request(body)

    def answer(self, payload: dict[str, Any], asked: Asked) -> dict[str, Any]:
        """The first choice as a response; there is never a second."""
        choices = payload.get("choices") or [{}]
        message = choices[0].get("message")
        reason = cut_off(choices[0].get("finish_reason"))
        output = Output(asked.interaction_id, summarised=wants_summary(asked.body))
        if isinstance(message, dict):
            output.take(message, logprobs_of(choices[0]))
        items = output.end(complete=reason is None)
        return ResponseObject(asked).ended(items, reason, payload.get("usage"), payload.get("service_tier"))

    def writer(self, asked: Asked) -> ResponsesWriter:
        """See ``gateway.surface.Surface``."""
        return ResponsesWriter(asked)

    def error(self, error: ApiError) -> bytes:
        """OpenAI's error object."""
        return error.body()
