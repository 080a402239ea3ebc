"""What every detector of harmful output offers, and what it says.

A detector is asked about a window of folded text and looks at nothing else: no clock, no network,
no memory of earlier windows. ``gateway.stream_guard`` slides the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in an output that should not be there. Never holds the text itself."""

    category: str  #: a hazard in MLCommons' words
    pattern: str  #: which rule of the detector fired
    detector: str
    blocked: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For the interaction log."""
        return {
            "category": self.category,
            "pattern": self.pattern,
            "detector": self.detector,
            "blocked": self.blocked,
        }


class Match(NamedTuple):
    """A finding and the span of the window that it covers."""

    category: str
    pattern: str
    start: int
    end: int


class Scan(NamedTuple):
    """What a window holds: the match that ends first, and where text begins that may still become one."""

    match: Match | None
    hold_from: int


class Detector(Protocol):
    """Looks for harm in text that has not been released yet."""

    name: str

    def is_clear(self, window: str, final: bool) -> bool:
        """A quick look: whether ``scan`` would find and hold back nothing. A no may be wrong, a yes never."""
        ...

    def scan(self, window: str, in_word: bool, final: bool) -> Scan:
        """Judge a window of folded text.

        ``in_word``: the window begins in the middle of a word that was released already.
        ``final``: no more text follows, so that nothing needs to be held back.
        """
        ...
