"""Lets text through only when it can no longer become part of something harmful.

Holds back the shortest suffix that may still become a match, so that a reader notices nothing and
no byte of a blocked span ever leaves. Streamed and whole answers take the same path: a whole answer
is a stream of one piece. Knows no wire format.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.detector import Detector, Finding, Match, Scan
from gateway.text_folding import fold, original_position

#: Guard profiles by name. A name that is not listed blocks everything: an unknown word fails safe.
_OBSERVING = frozenset({"observe"})
#: What no profile lets pass: leaked secrets cannot be taken back.
_ALWAYS_BLOCKED = frozenset({"privacy"})


class StreamGuard:
    """The gate for one text channel of one answer."""

    __slots__ = ("_detectors", "_held", "_in_word", "_observes", "_shown", "blocked", "findings")

    def __init__(self, detectors: Sequence[Detector], profile: str = "default") -> None:
        self._detectors = detectors
        self._observes = profile in _OBSERVING
        self._held = ""
        self._in_word = False
        self._shown = 0  # characters of what is held that have left already, in a pause
        self.findings: list[Finding] = []
        self.blocked: Finding | None = None  #: set once; nothing is released any more

    @property
    def holds(self) -> bool:
        """Whether some text waits for its continuation."""
        return len(self._held) > self._shown

    def feed(self, piece: str, final: bool = False) -> str:
        """Take the next piece; return what may leave now, which may be nothing or more than the piece."""
        if self.blocked is not None:
            return ""
        if self._shown:
            return self._go_on(piece, final)
        text = self._held + piece if self._held else piece
        folded = fold(text)
        if self._is_clear(folded, final):  # nearly always
            self._held = ""
            if folded:
                self._in_word = folded[-1].isalnum()
            return text
        released = ""
        while True:
            folded = fold(text)
            scan, detector = self._scan(folded, final)
            if scan.match is None:
                return released + self._release(text, folded, scan.hold_from)
            released += self._judge(text, folded, scan.match, detector)
            if self.blocked is not None:
                return released
            text, self._held = self._held, ""

    def pause(self) -> str:
        """Give what is held, because something else is said next. It is judged as if nothing followed.

        It stays in mind: should the text go on after all, nobody gets to read the rest of a match.
        """
        released = ""
        while self._held and self.blocked is None:
            folded = fold(self._held)
            scan, detector = self._scan(folded, True)
            if scan.match is None:
                released += self._held[self._shown :]
                self._shown = len(self._held)
                break
            shown, self._shown = self._shown, 0
            released += self._unseen(self._judge(self._held, folded, scan.match, detector), shown)
        return released

    def _go_on(self, piece: str, final: bool) -> str:
        shown, self._shown = self._shown, 0
        return self._unseen(self.feed(piece, final), shown)

    def _unseen(self, released: str, shown: int) -> str:
        """What of a released text had not left before."""
        self._shown = max(0, shown - len(released))
        return released[shown:]

    def _is_clear(self, folded: str, final: bool) -> bool:
        return all([each.is_clear(folded, final) for each in self._detectors])  # noqa: C419  # the faster one

    def _scan(self, folded: str, final: bool) -> tuple[Scan, str]:
        hold_from = len(folded)
        first: Match | None = None
        by = ""
        for detector in self._detectors:
            scan = detector.scan(folded, self._in_word, final)
            hold_from = min(hold_from, scan.hold_from)
            if scan.match is not None and (first is None or scan.match.end < first.end):
                first, by = scan.match, detector.name
        return Scan(first, hold_from), by

    def _judge(self, text: str, folded: str, match: Match, detector: str) -> str:
        blocks = not self._observes or match.category in _ALWAYS_BLOCKED
        finding = Finding(match.category, match.pattern, detector, blocks)
        self.findings.append(finding)
        if blocks:
            self.blocked = finding
            self._held = ""
            return text[: original_position(text, match.start)]
        return self._release(text, folded, match.end)

    def _release(self, text: str, folded: str, until: int) -> str:
        cut = len(text) if until == len(folded) else original_position(text, until)
        # One character may fold to several: what counts is what really left.
        gone = folded if cut == len(text) else fold(text[:cut])
        if gone:
            self._in_word = gone[-1].isalnum()
        self._held = text[cut:]
        return text[:cut]
