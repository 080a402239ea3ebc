"""Where OpenAI's messages and deltas hold text, and how a held-back piece of it is written again.

A channel is one text that grows over the deltas of a stream: the content, the arguments of a tool call.
Knows no detector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_TEXT_FIELDS = frozenset({"content", "reasoning_content", "reasoning", "refusal"})
#: Lists of parts are read as deep as this: a part of thinking is a list of parts itself.
_PART_LEVELS = 2
CONTENT = "content"
#: Channels of what the model wants to be called with; they make the log's text where there is no content.
CALLS = ("tool_calls", "custom_tool_calls", "function_call")


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
        elif name in _TEXT_FIELDS or name == "reasoning_details":
            yield from _parts(name, value, _PART_LEVELS)


def _named(holder: Any, key: str, channel: str) -> Iterator[Slot]:
    text = holder.get(key) if isinstance(holder, dict) else None
    if text and isinstance(text, str):
        yield Slot(channel, holder, key)


def _tool_calls(calls: Any) -> Iterator[Slot]:
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            number = call.get("index")
            number = number if isinstance(number, int) else place
            yield from _named(call.get("function"), "arguments", f"tool_calls/{number}")
            yield from _named(call.get("custom"), "input", f"custom_tool_calls/{number}")


def _parts(channel: str, parts: Any, levels: int) -> Iterator[Slot]:
    for part in parts if isinstance(parts, list) and levels else ():
        for key in ("text", "refusal", "summary", "thinking"):
            yield from _named(part, key, channel)
        if isinstance(part, dict):
            yield from _parts(channel, part.get("thinking"), levels - 1)


def delta_of(channel: str, text: str) -> dict[str, Any]:
    """A delta that brings more of one channel."""
    kind, _, number = channel.partition("/")
    match kind:
        case "tool_calls":
            return {"tool_calls": [{"index": int(number), "function": {"arguments": text}}]}
        case "custom_tool_calls":
            return {"tool_calls": [{"index": int(number), "custom": {"input": text}}]}
        case "function_call":
            return {"function_call": {"arguments": text}}
        case "audio":
            return {"audio": {"transcript": text}}
        case "reasoning_details":
            return {"reasoning_details": [{"type": "reasoning.text", "text": text}]}
    return {channel: text}
