"""Leads every text of an answer through the detectors, and keeps what may be logged of it.

Knows OpenAI's answers and chunks; ``gateway.answer_text`` where a message holds text, and
``gateway.stream_guard`` what may pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from gateway.answer_text import (
    CALLS,
    CONTENT,
    THINKING,
    delta_of,
    is_call,
    seals_thinking,
    text_slots,
    voice_of,
    voices_in,
)
from gateway.detector import Detector, Finding
from gateway.stream_guard import StreamGuard

SAFE_SENTENCE = "This answer was withheld because it broke the safety rules of this service."


class _Choice:
    """What one choice says: its channels, and who of them speaks."""

    __slots__ = ("channels", "heard", "logprobs", "speaks")

    def __init__(self) -> None:
        self.channels: dict[str, StreamGuard] = {}
        self.speaks: str | None = None
        self.heard: set[str] = set()  #: every voice that has begun
        self.logprobs: list[dict[str, Any]] = []  #: of tokens that are held back

    @property
    def holds(self) -> bool:
        """Whether a text waits, or will never leave."""
        return any(guard.holds or guard.blocked for guard in self.channels.values())

    def turn_to(self, voices: list[str]) -> Collection[str]:
        """Who has ended, now that these speak: so that everything is read in the order it was said in.

        Pieces of calls may come in turns; such a call ends no other.
        """
        if not voices or (len(voices) == 1 and voices[0] == self.speaks):
            return ()
        last = self.speaks = voices[-1]
        goes_on = last in self.heard and is_call(last)
        self.heard.update(voices)
        return {voice for voice in self.heard if voice != last and not (goes_on and is_call(voice))}

    def held_by(self, voices: Collection[str]) -> Iterator[list[str]]:
        """The channels that these voices have, by voice."""
        by_voice: dict[str, list[str]] = {}
        for name in self.channels:
            by_voice.setdefault(voice_of(name), []).append(name)
        return (names for voice, names in by_voice.items() if voice in voices)

    def take_logprobs(self) -> dict[str, Any] | None:
        """Those of all tokens that may leave now."""
        told, self.logprobs = self.logprobs, []
        if not told:
            return None
        joined: dict[str, Any] = {**told[-1]}
        for name in ("content", "refusal"):
            lists = [each[name] for each in told if isinstance(each.get(name), list)]
            if lists:
                joined[name] = [token for tokens in lists for token in tokens]
        return joined


class AnswerGuard:
    """All text channels of one answer, plain or in chunks."""

    __slots__ = (
        "_calls",
        "_choices",
        "_detectors",
        "_log",
        "_profile",
        "blocked",
        "characters",
        "finish_reason",
    )

    def __init__(self, detectors: Sequence[Detector], profile: str) -> None:
        self._detectors = detectors
        self._profile = profile
        self._choices: dict[int, _Choice] = {}
        self._log: list[str] = []  # what was released of the first choice's content
        self._calls: list[str] = []  # and of the arguments of its tool calls
        self.blocked: Finding | None = None
        self.finish_reason: str | None = None
        self.characters = 0  #: that were let through, in all choices and channels

    @property
    def findings(self) -> list[Finding]:
        """What the detectors found, in all channels."""
        guards = [guard for choice in self._choices.values() for guard in choice.channels.values()]
        return [finding for guard in guards for finding in guard.findings]

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
                self._check_message(_index_of(choice, place), message)
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

    def _check_message(self, index: int, message: dict[str, Any]) -> None:
        choice = self._choice(index)
        for channel, holder, key in text_slots(message):
            text = holder[key]
            if holder is message:
                holder[key] = self._feed(choice, index, channel, text, True)
            else:  # clients may put parts together
                holder[key] = self._feed(choice, index, channel, text) + self._pause(choice, index, channel)

    # -- streams

    def check_chunk(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks to forward in place of one: what was held back before it, itself, or less."""
        flushed: list[dict[str, Any]] = []
        for said in chunk.get("choices", ()):
            index = said["index"] = _index_of(said, 0)
            choice = self._choice(index)
            said.pop("message", None)  # no part of a chunk; what clients read it for has passed as deltas
            delta = said.get("delta")
            if isinstance(delta, dict):
                flushed += self._check_delta(chunk, choice, index, delta)
            if choice.logprobs or said.get("logprobs"):
                _settle_logprobs(choice, said)
            reason = _reason_of(said)
            if reason:
                self.finish_reason = reason
                flushed += self._flush(chunk, choice, index)
        return [*flushed, chunk]

    def _check_delta(
        self, chunk: dict[str, Any], choice: _Choice, index: int, delta: dict[str, Any]
    ) -> list[dict[str, Any]]:
        content = delta.get(CONTENT)
        if len(delta) == 1 and choice.speaks == CONTENT and isinstance(content, str):  # nearly all of them
            if content:
                delta[CONTENT] = self._feed(choice, index, CONTENT, content)
            return []
        slots = list(text_slots(delta))
        ended = set(choice.turn_to(voices_in(delta, slots)))
        if seals_thinking(delta):
            ended.add(THINKING)
        here = {slot.channel for slot in slots}
        before = self._let_go(chunk, choice, index, ended, here) if ended else []
        for channel, holder, key in slots:
            text = self._feed(choice, index, channel, holder[key])
            if voice_of(channel) in ended:
                text += self._pause(choice, index, channel)
            holder[key] = text
        return before

    def _let_go(
        self,
        chunk: dict[str, Any],
        choice: _Choice,
        index: int,
        voices: Collection[str],
        but: Collection[str] = (),
    ) -> list[dict[str, Any]]:
        """Chunks of what these voices still hold back, but for some channels."""
        chunks = []
        for names in choice.held_by(voices):
            texts = [(name, self._pause(choice, index, name)) for name in names if name not in but]
            delta = delta_of((name, text) for name, text in texts if text)
            if delta:
                chunks.append(_chunk_like(chunk, index, delta))
                if CONTENT in delta and not choice.holds:
                    chunks[-1]["choices"][0]["logprobs"] = choice.take_logprobs()
        return chunks

    def _flush(self, chunk: dict[str, Any], choice: _Choice, index: int) -> list[dict[str, Any]]:
        """What is held back of a choice that has ended. It follows the deltas of the ending chunk."""
        chunks = self._let_go(chunk, choice, index, choice.heard)
        # The ending chunk may bring text of its own, which comes before what was held after it.
        if chunks:
            chunks.insert(0, _take_delta(chunk, index))
        return chunks

    def flush_all(self, like: dict[str, Any]) -> list[dict[str, Any]]:
        """What is still held back when a stream ends without naming a reason."""
        ending = {**_envelope(like), "choices": []}
        each = sorted(self._choices.items())
        return [chunk for index, choice in each for chunk in self._flush(ending, choice, index)[1:]]

    def closing_chunk(self, like: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ends a blocked stream for every choice that was begun."""
        choices = [
            {"index": index, "delta": {}, "finish_reason": "content_filter"}
            for index in sorted(self._choices)
        ]
        return {**_envelope(like), "choices": choices}

    # -- text

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice

    def _feed(self, choice: _Choice, index: int, name: str, text: str, final: bool = False) -> str:
        guard = choice.channels.get(name)
        if guard is None:
            guard = choice.channels[name] = StreamGuard(self._detectors, self._profile)
        return self._note(index, name, guard, guard.feed(text, final))

    def _pause(self, choice: _Choice, index: int, name: str) -> str:
        guard = choice.channels[name]
        return self._note(index, name, guard, guard.pause())

    def _note(self, index: int, name: str, guard: StreamGuard, released: str) -> str:
        if guard.blocked is not None and self.blocked is None:
            self.blocked = guard.blocked
        self.characters += len(released)
        if index == 0 and name == CONTENT:
            self._log.append(released)
        elif index == 0 and name.startswith(CALLS):
            self._calls.append(released)
        return released


def _settle_logprobs(choice: _Choice, said: dict[str, Any]) -> None:
    """They spell out the tokens, so they wait while any of these are held back."""
    if isinstance(said.get("logprobs"), dict):
        choice.logprobs.append(said["logprobs"])
    said["logprobs"] = None if choice.holds else choice.take_logprobs()


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
    taken = _chunk_like(chunk, index, {})
    for choice in chunk["choices"]:
        if choice.get("index", 0) == index and isinstance(choice.get("delta"), dict):
            taken["choices"][0]["delta"], choice["delta"] = choice["delta"], {}
            if choice.get("logprobs"):
                taken["choices"][0]["logprobs"], choice["logprobs"] = choice["logprobs"], None
    return taken
