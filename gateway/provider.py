"""What every provider offers to the gateway: chat completions in OpenAI's shape, plain and in pieces.

An adapter translates its provider's wire format and errors. It knows no route, no use case and no
detector, and it never retries: that is decided where the arms are known.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer and how long the provider took for it."""

    payload: dict[str, Any]
    waited_seconds: float


class Terms(NamedTuple):
    """What one attempt is bound by, besides the provider's own configuration (None: that alone)."""

    first_token_seconds: float | None = None
    idle_seconds: float | None = None
    deadline: float | None = None  #: in the event loop's time: when the whole answer must be there
    traceparent: bytes | None = None  #: a header of the W3C's trace context, handed on as it is


DEFAULT_TERMS = Terms()


class Provider(Protocol):
    """Something that answers chat completions. Raises ``gateway.errors.UpstreamError`` only."""

    name: str

    async def start(self) -> None:
        """Get ready, as far as that can be done before the first call. Called once, at the start."""
        ...

    async def complete(self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS) -> Answer:
        """Ask for a whole answer. Its payload has a list of choices."""
        ...

    def stream(
        self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Ask for an answer in pieces: lists of the chunks that arrived together.

        Ends when the provider has said that the answer is complete, and raises otherwise. Closing
        the generator tells the provider to stop.
        """
        ...

    async def embed(self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS) -> Answer:
        """Ask for embeddings. The payload has a list ``data``."""
        ...

    def close(self) -> None:
        """Let go of every connection."""
        ...

    async def finish(self) -> None:
        """After ``close``: wait until nothing of it runs any more."""
        ...
