"""What every provider offers to the gateway: chat completions in OpenAI's shape, plain and in pieces.

An adapter translates its provider's wire format and errors. It knows no route, no use case and no
detector, and it never retries: that is decided where the arms are known.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole chat completion and how long the provider took for it."""

    payload: dict[str, Any]
    waited_seconds: float


class Provider(Protocol):
    """Something that answers chat completions. Raises ``gateway.errors.UpstreamError`` only."""

    name: str

    async def complete(self, request: dict[str, Any]) -> Answer:
        """Ask for a whole answer. Its payload has a list of choices."""
        ...

    def stream(self, request: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Ask for an answer in pieces: lists of the chunks that arrived together.

        Ends when the provider has said that the answer is complete, and raises otherwise. Closing
        the generator tells the provider to stop.
        """
        ...

    def close(self) -> None:
        """Let go of every connection."""
        ...
