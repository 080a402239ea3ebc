"""Writes a stream of chat completion chunks as the events of the Responses API."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import ApiError
from gateway.surface import Asked
from gateway.surfaces.responses_object import ResponseObject, cut_off, wants_summary
from gateway.surfaces.responses_output import Output, logprobs_of

Json = dict[str, Any]


class ResponsesWriter:
    """See ``gateway.surface.StreamWriter``."""

    __slots__ = ("_events", "_finish_reason", "_number", "_output", "_response", "_tier", "_usage")

    def __init__(self, asked: Asked) -> None:
        self._response = ResponseObject(asked)
        self._output = Output(asked.interaction_id, self._tell, summarised=wants_summary(asked.body))
        self._number = 0
        self._events: list[bytes] = []  # told, but not yet given away
        self._finish_reason: Any = None
        self._usage: Any = None
        self._tier: Any = None

    def chunk(self, chunk: Json) -> bytes:
        """See ``gateway.surface.StreamWriter``."""
        self._open()
        self._usage = chunk.get("usage") or self._usage
        self._tier = chunk.get("service_tier") or self._tier
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._take(choice)
        return self._told()

    def end(self) -> bytes:
        """See ``gateway.surface.StreamWriter``."""
        self._open()
        reason = cut_off(self._finish_reason)
        output = self._output.end(complete=reason is None)
        response = self._response.ended(output, reason, self._usage, self._tier)
        self._tell(f"response.{response['status']}", {"response": response})
        return self._told()

    def fail(self, error: ApiError) -> bytes:
        """See ``gateway.surface.StreamWriter``."""
        self._open()
        # Flat, as OpenAI documents it: a field ``error`` of its own is something else to its clients.
        self._tell("error", {"code": error.code, "message": error.message, "param": error.param})
        response = self._response.failed(self._output.cut(), error, self._usage)
        self._tell("response.failed", {"response": response})
        return self._told()

    def _take(self, choice: Json) -> None:
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        if delta and isinstance(delta, dict):
            self._output.take(delta, logprobs_of(choice) if choice.get("logprobs") else [])

    def _open(self) -> None:
        if self._number == 0:
            self._tell("response.created", {"response": self._response.begun()})
            self._tell("response.in_progress", {"response": self._response.begun()})

    def _tell(self, event: str, fields: Json) -> None:
        data = orjson.dumps({"type": event, "sequence_number": self._number, **fields})
        self._events.append(b"event: %b\ndata: %b\n\n" % (event.encode(), data))
        self._number += 1

    def _told(self) -> bytes:
        told = b"".join(self._events)
        self._events.clear()
        return told
