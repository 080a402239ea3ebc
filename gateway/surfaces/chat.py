"""POST /v1/chat/completions: the form that everything has inside, so that little is left to do."""

from __future__ import annotations

from typing import Any

from gateway import sse
from gateway.errors import ApiError
from gateway.surface import Asked


class ChatSurface:
    """See ``gateway.surface.Surface``."""

    name = "chat"
    id_headers: tuple[bytes, ...] = (b"x-request-id",)

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body as it is."""
        return body

    def answer(self, payload: dict[str, Any], asked: Asked) -> dict[str, Any]:
        """The payload under our names."""
        payload["id"] = f"chatcmpl-{asked.interaction_id}"
        payload["model"] = asked.model
        return payload

    def writer(self, asked: Asked) -> ChatWriter:
        """See ``gateway.surface.Surface``."""
        return ChatWriter(asked)

    def error(self, error: ApiError) -> bytes:
        """OpenAI's error object."""
        return error.body()


class ChatWriter:
    """See ``gateway.surface.StreamWriter``."""

    __slots__ = ("_id", "_model", "_wants_usage")

    def __init__(self, asked: Asked) -> None:
        self._id = f"chatcmpl-{asked.interaction_id}"
        self._model = asked.model
        options = asked.body.get("stream_options")
        self._wants_usage = bool(options and options.get("include_usage"))

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """The chunk under our names, without the usage that only the gateway asked for."""
        if not self._wants_usage and "usage" in chunk:
            del chunk["usage"]
            if not chunk["choices"]:
                return b""
        chunk["id"] = self._id
        chunk["model"] = self._model
        return sse.event(chunk)

    def end(self) -> bytes:
        """See ``gateway.surface.StreamWriter``."""
        return sse.DONE

    def fail(self, error: ApiError) -> bytes:
        """See ``gateway.surface.StreamWriter``."""
        return sse.event(error.as_dict()) + sse.DONE
