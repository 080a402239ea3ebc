"""Leads every text of an answer through the detectors, and keeps what may be logged of it.

Knows OpenAI's answers and chunks; ``gateway.answer_text`` where a message holds text, and
``gateway.stream_guard`` what may pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.answer_text import CALLS, CONTENT, delta_of, text_slots
from gateway.detector import Detector, Finding
from gateway.stream_guard import StreamGuard

SAFE_SENTENCE = "This answer was withheld because it broke the safety rules of this service."


class AnswerGuard:
    """All text channels of one answer, plain or in chunks."""

    __slots__ = (
        "_calls",
        "_channels",
        "_detectors",
        "_log",
        "_profile",
        "blocked",
        "characters",
        "choices",
        "finish_reason",
    )

    def __init__(self, detectors: Sequence[Detector], profile: str) -> None:
        self._detectors = detectors
        self._profile = profile
        self._channels: dict[tuple[int, str], StreamGuard] = {}
        self._log: list[str] = []  # what was released of the first choice's content
        self._calls: list[str] = []  # and of the arguments of its tool calls
        self.blocked: Finding | None = None
        self.choices: set[int] = set()  #: those that were begun
        self.finish_reason: str | None = None
        self.characters = 0  #: that were let through, in all choices and channels

    @property
    def findings(self) -> list[Finding]:
        """What the detectors found, in all channels."""
        return [finding for channel in self._channels.values() for finding in channel.findings]

    @property
    def text(self) -> str:
        """What reached the caller of the first choice, for the log; a blocked span is only named."""
        text = "".join(self._log or self._calls)
        return f"{text}[blocked: {self.blocked.category}]" if self.blocked else text

    # -- whole answers

    def check_answer(self, payload: dict[str, Any]) -> None:
        """Replace every choice by a safe sentence if one of them must not leave."""
        for place, choice in enumerate(payload["choices"]):
            message = choice.get("message")
            if isinstance(message, dict):
                self._check_message(_index_of(choice, place), message, final=True)
        if self.blocked is None:
            self._note_answer(payload)
            return
        for choice in payload["choices"]:
            choice["message"] = {"role": "assistant", "content": SAFE_SENTENCE}
            choice["finish_reason"] = "content_filter"
            choice["logprobs"] = None
        self.finish_reason = "content_filter"

    def _note_answer(self, payload: dict[str, Any]) -> None:
        first = payload["choices"][0] if payload["choices"] else {}
        self.finish_reason = _reason_of(first)

    # -- streams

    def check_chunk(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks to forward in place of one: itself, what was held back before an end, or less."""
        flushed: list[dict[str, Any]] = []
        for choice in chunk.get("choices", ()):
            index = choice["index"] = _index_of(choice, 0)
            self.choices.add(index)
            choice.pop("message", None)  # no part of a chunk; what clients read it for has passed as deltas
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._check_delta(index, delta)
            if choice.get("logprobs") and self._holds(index):
                choice["logprobs"] = None  # they spell out the tokens that are held back
            reason = _reason_of(choice)
            if reason:
                self.finish_reason = reason
                flushed += self._flush(chunk, index)
        return [*flushed, chunk]

    def _holds(self, index: int) -> bool:
        return any(guard.holds or guard.blocked for key, guard in self._channels.items() if key[0] == index)

    def _flush(self, chunk: dict[str, Any], index: int) -> list[dict[str, Any]]:
        """What is held back of a choice that has ended. It follows the deltas of the ending chunk."""
        held = [(name, guard) for (owner, name), guard in self._channels.items() if owner == index]
        chunks = []
        for name, guard in held:
            text = self._feed_guard(index, name, guard, "", final=True)
            if text:
                chunks.append(_chunk_like(chunk, index, delta_of(name, text)))
        # The ending chunk may bring text of its own, which comes before what was held after it.
        if chunks:
            chunks.insert(0, _take_delta(chunk, index))
        return chunks

    def flush_all(self, like: dict[str, Any]) -> list[dict[str, Any]]:
        """What is still held back when a stream ends without naming a reason."""
        ending = {**_envelope(like), "choices": []}
        return [chunk for index in sorted(self.choices) for chunk in self._flush(ending, index)[1:]]

    def closing_chunk(self, like: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ends a blocked stream for every choice that was begun."""
        choices = [
            {"index": index, "delta": {}, "finish_reason": "content_filter"} for index in sorted(self.choices)
        ]
        return {**_envelope(like), "choices": choices}

    # -- text

    def _check_delta(self, index: int, delta: dict[str, Any]) -> None:
        content = delta.get(CONTENT)
        if len(delta) == 1 and isinstance(content, str):  # nearly all of them
            if content:
                delta[CONTENT] = self._feed(index, CONTENT, content, False)
        else:
            self._check_message(index, delta)

    def _check_message(self, index: int, message: dict[str, Any], final: bool = False) -> None:
        for channel, holder, key in text_slots(message):
            holder[key] = self._feed(index, channel, holder[key], final)

    def _feed(self, index: int, name: str, text: str, final: bool) -> str:
        guard = self._channels.get((index, name))
        if guard is None:
            guard = self._channels[index, name] = StreamGuard(self._detectors, self._profile)
        return self._feed_guard(index, name, guard, text, final)

    def _feed_guard(self, index: int, name: str, guard: StreamGuard, text: str, final: bool) -> str:
        released = guard.feed(text, final)
        if guard.blocked is not None and self.blocked is None:
            self.blocked = guard.blocked
        self.characters += len(released)
        if index == 0 and name == CONTENT:
            self._log.append(released)
        elif index == 0 and name.startswith(CALLS):
            self._calls.append(released)
        return released


def _index_of(choice: dict[str, Any], place: int) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else place


def _reason_of(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None


def _envelope(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name not in ("choices", "usage")}


def _chunk_like(chunk: dict[str, Any], index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {**_envelope(chunk), "choices": [{"index": index, "delta": delta, "finish_reason": None}]}


def _take_delta(chunk: dict[str, Any], index: int) -> dict[str, Any]:
    """Move a choice's delta out of a chunk into one of its own."""
    delta: dict[str, Any] = {}
    for choice in chunk["choices"]:
        if choice.get("index", 0) == index and isinstance(choice.get("delta"), dict):
            delta, choice["delta"] = choice["delta"], {}
    return _chunk_like(chunk, index, delta)
