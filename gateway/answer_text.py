"""Where OpenAI's messages and deltas hold text, and how a held-back piece of it is written again.

A channel is one text that grows over the deltas of a stream: the content, the arguments of a tool call.
A voice is all channels that are heard together: a thought is often told twice, plainly and in blocks that
carry its signature. Knows no detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_TEXT_FIELDS = frozenset({"content", "reasoning_content", "reasoning", "refusal"})
#: Lists of what a model thinks; their entries may be signed.
_THOUGHT_LISTS = ("thinking_blocks", "reasoning_details")
#: Lists of parts are read as deep as this: a part of thinking is a list of parts itself.
_PART_LEVELS = 2
CONTENT = "content"
#: Channels of what the model wants to be called with; they make the log's text where there is no content.
CALLS = ("tool_calls", "custom_tool_calls", "function_call")
_THINKING_PARTS = f"{CONTENT}/thinking"

THINKING = "thinking"
_CALL = "call/"
#: Voices of channels; any other that is no call is a thought.
_VOICES = {CONTENT: CONTENT, "refusal": CONTENT, "audio": "audio", "function_call": _CALL}
#: What comes first if one delta has several voices; calls come last.
_ORDER = (THINKING, CONTENT, "audio", _CALL)


class Slot(NamedTuple):
    """A text, by the object and the key that hold it, and its channel."""

    channel: str
    holder: dict[str, Any]
    key: str


def text_slots(message: dict[str, Any]) -> Iterator[Slot]:
    """Every text of a message or a delta that is not empty. Values may be replaced meanwhile."""
    for name, value in message.items():
        if not value:
            continue
        if isinstance(value, str):
            if name in _TEXT_FIELDS:
                yield Slot(name, message, name)
        elif name == "tool_calls":
            yield from _tool_calls(value)
        elif name == "function_call":
            yield from _named(value, "arguments", name)
        elif name == "audio":
            yield from _named(value, "transcript", name)
        elif name in _TEXT_FIELDS or name in _THOUGHT_LISTS:
            yield from _parts(name, value, _PART_LEVELS)


def _named(holder: Any, key: str, channel: str) -> Iterator[Slot]:
    text = holder.get(key) if isinstance(holder, dict) else None
    if text and isinstance(text, str):
        yield Slot(channel, holder, key)


def _tool_calls(calls: Any) -> Iterator[Slot]:
    for number, call in _numbered(calls):
        yield from _named(call.get("function"), "arguments", f"tool_calls/{number}")
        yield from _named(call.get("custom"), "input", f"custom_tool_calls/{number}")


def _numbered(calls: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            number = call.get("index")
            yield number if isinstance(number, int) else place, call


def _parts(channel: str, parts: Any, levels: int) -> Iterator[Slot]:
    thoughts = _THINKING_PARTS if channel == CONTENT else channel
    for part in parts if isinstance(parts, list) and levels else ():
        for key in ("text", "refusal", "summary"):
            yield from _named(part, key, channel)
        yield from _named(part, "thinking", thoughts)
        if isinstance(part, dict):
            yield from _parts(thoughts, part.get("thinking"), levels - 1)


# -- voices


def voice_of(channel: str) -> str:
    """The voice that a channel belongs to; every tool call has its own."""
    kind, _, number = channel.partition("/")
    if kind in ("tool_calls", "custom_tool_calls"):
        return f"{_CALL}{number}"
    return THINKING if channel == _THINKING_PARTS else _VOICES.get(kind, THINKING)


def is_call(voice: str) -> bool:
    """Whether the voice is a tool call."""
    return voice.startswith(_CALL)


def voices_in(delta: dict[str, Any], slots: Iterable[Slot]) -> list[str]:
    """Who speaks in a delta, in the order in which it is meant. A call speaks before it has arguments."""
    voices = dict.fromkeys(voice_of(slot.channel) for slot in slots)
    calls = delta.get("tool_calls")
    if calls:
        voices |= dict.fromkeys(f"{_CALL}{number}" for number, _ in _numbered(calls))
    if delta.get("function_call"):
        voices[_CALL] = None
    found = list(voices)
    return found if len(found) < 2 else sorted(found, key=_place)


def _place(voice: str) -> int:
    return _ORDER.index(_CALL if is_call(voice) else voice)


def seals_thinking(delta: dict[str, Any]) -> bool:
    """Whether a signature ends the thought: what was held back of it must not come after."""
    return any(_has_seal(delta.get(name)) for name in _THOUGHT_LISTS)


def _has_seal(thoughts: Any) -> bool:
    for thought in thoughts if isinstance(thoughts, list) else ():
        if isinstance(thought, dict) and (thought.get("signature") or thought.get("data")):
            return True
    return False


def delta_of(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A delta that brings more of the channels of one voice."""
    delta: dict[str, Any] = {}
    for channel, text in texts:
        delta |= _delta_of(channel, text)
    return delta


def _delta_of(channel: str, text: str) -> dict[str, Any]:
    kind, _, number = channel.partition("/")
    if channel == _THINKING_PARTS:
        return {CONTENT: [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}
    match kind:
        case "tool_calls":
            return {"tool_calls": [{"index": int(number), "function": {"arguments": text}}]}
        case "custom_tool_calls":
            return {"tool_calls": [{"index": int(number), "custom": {"input": text}}]}
        case "function_call":
            return {"function_call": {"arguments": text}}
        case "audio":
            return {"audio": {"transcript": text}}
        case "thinking_blocks":
            return {"thinking_blocks": [{"type": "thinking", "thinking": text}]}
        case "reasoning_details":
            return {"reasoning_details": [{"type": "reasoning.text", "text": text}]}
    return {channel: text}
