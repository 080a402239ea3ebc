"""What a surface is: a way of asking that applications know, in front of chat completions.

Inside the gateway everything is a chat completion of OpenAI's: routing, guard, log and shadows see
nothing else. A surface reads its own requests into that form and writes answers, pieces and errors
back. It does no I/O, keeps unknown fields, and knows no route.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gateway.errors import ApiError


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer must repeat of its request."""

    interaction_id: str  #: ``int_…``: the answer's own id is made of it
    model: str  #: as the client wrote it
    body: dict[str, Any]  #: the request as the client sent it, in the surface's own form
    created: int  #: Unix time, seconds


class StreamWriter(Protocol):
    """Writes one stream, from chunks that the guard let pass."""

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """The events for one chunk; the first call opens the stream. May be empty."""
        ...

    def end(self) -> bytes:
        """The events that end a stream that is whole; called once, after the last chunk."""
        ...

    def fail(self, error: ApiError) -> bytes:
        """The events that end a stream that broke; called instead of ``end``."""
        ...


class Surface(Protocol):
    """One way of asking. One object for the life of the process, without state."""

    name: str  #: as the log has it: chat, responses, messages
    id_headers: tuple[bytes, ...]  #: where clients look for the request's id

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """The chat completion request that asks the same. Raises ``ApiError``; ``body`` stays as it is."""
        ...

    def answer(self, payload: dict[str, Any], asked: Asked) -> dict[str, Any]:
        """A whole chat completion as this surface writes it. ``payload`` may be changed."""
        ...

    def writer(self, asked: Asked) -> StreamWriter:
        """A writer for one stream."""
        ...

    def error(self, error: ApiError) -> bytes:
        """The body of an error answer."""
        ...
