"""Anthropic's Messages API in front of chat completions.

``messages_request`` and ``messages_content`` read what is asked, ``messages_speech`` cuts what a model
says into blocks, ``messages_answer`` and ``messages_stream`` write them. No I/O, no route, no state.
"""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import ApiError
from gateway.surface import Asked, StreamWriter
from gateway.surfaces.messages_answer import error_payload, write_message
from gateway.surfaces.messages_request import read_request
from gateway.surfaces.messages_stream import MessagesWriter


class MessagesSurface:
    """``POST /v1/messages``."""

    name = "messages"
    id_headers: tuple[bytes, ...] = (b"x-request-id", b"request-id")

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """The chat completion request that asks the same. Raises ``ApiError``."""
        return read_request(body)

    def answer(self, payload: dict[str, Any], asked: Asked) -> dict[str, Any]:
        """A whole chat completion as a message."""
        return write_message(payload, asked)

    def writer(self, asked: Asked) -> StreamWriter:
        """A writer for one stream of events."""
        return MessagesWriter(asked)

    def error(self, error: ApiError) -> bytes:
        """The body of an error answer."""
        return orjson.dumps(error_payload(error))
