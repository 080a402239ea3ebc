"""Reads the input of a Responses request: a list of items, into the messages of a chat.

What one assistant turn is, the Responses API spreads over several items (reasoning, message, calls);
a chat has it in one message. Knows no field of a request but ``input``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.surfaces.responses_checks import (
    checked,
    missing,
    needed,
    objects,
    optional,
    present,
    quoted,
    unsupported,
    without,
    wrong,
)
from gateway.surfaces.responses_thinking import opened, thinking_blocks

Json = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_MESSAGE_FIELDS = frozenset({"type", "id", "status", "phase", "role", "content"})
_CALL_FIELDS = frozenset(
    {"type", "id", "status", "call_id", "name", "arguments", "input", "caller", "namespace"}
)


def read_input(value: Any) -> list[Json]:
    """The messages of a chat for the ``input`` of a request."""
    if value is None:
        raise missing("input", "send a string, or a list of items")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong("input", "a string or a list of items")
    conversation = _Conversation()
    for where, item in objects(value, "input"):
        _reader_of(item, where)(conversation, item, where)
    messages = conversation.ended()
    if not messages:
        raise wrong("input", "a list with at least one message")
    return messages


# -- one turn after the other


@dataclass(slots=True)
class _Turn:
    """What the assistant said, thought and called before anybody else spoke."""

    said: Json | None = None
    calls: list[Json] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    seals: list[Json] = field(default_factory=list)

    def message(self) -> Json | None:
        """The turn as a message; None if it was only thought, which no chat can hold."""
        if self.said is None and not self.calls:
            return None
        text = "".join(self.thoughts)
        return {
            "role": "assistant",
            "content": None,
            **(self.said or {}),
            **present(
                reasoning_content=text or None,
                thinking_blocks=thinking_blocks(text, self.seals) or None,
                tool_calls=self.calls or None,
            ),
        }


class _Conversation:
    """The messages so far, and the assistant's turn that may still go on."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._turn = _Turn()

    def add(self, message: Json) -> None:
        """Somebody else speaks: a user, an operator, a tool."""
        self._end_turn()
        self._messages.append(message)

    def say(self, message: Json) -> None:
        """Two messages in a row are two turns, except after calls: their outputs must come next."""
        turn = self._turn
        if turn.said is not None and turn.calls:
            turn.said = {**turn.said, **message, "content": _joined(turn.said, message)}
            return
        if turn.said is not None:
            self._end_turn()
        self._turn.said = message

    def call(self, call: Json) -> None:
        """The assistant calls a tool."""
        self._turn.calls.append(call)

    def think(self, text: str, seals: list[Json]) -> None:
        """Reasoning belongs to what comes after it."""
        if self._turn.said is not None and not self._turn.calls:
            self._end_turn()
        self._turn.thoughts.append(text)
        self._turn.seals += seals

    def ended(self) -> list[Json]:
        """All messages."""
        self._end_turn()
        return self._messages

    def _end_turn(self) -> None:
        message = self._turn.message()
        if message is not None:
            self._messages.append(message)
        self._turn = _Turn()


def _joined(first: Json, second: Json) -> list[Json]:
    return [*_as_parts(first["content"]), *_as_parts(second["content"])]


def _as_parts(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


# -- items

_Reader = Callable[[_Conversation, Json, str], None]


def _reader_of(item: Json, where: str) -> _Reader:
    kind = optional(item, "type", str, f"{where}.type")
    if kind is None:
        kind = _untyped(item, where)
    reader = _READERS.get(kind)
    if reader is not None:
        return reader
    if kind == "item_reference":
        text = f"'{where}' refers to a stored item, and nothing is stored here. Send the item itself."
        raise unsupported(where, text)
    text = (
        f"'{where}' is an item of type {quoted(kind)}, which this gateway cannot hand to a model. "
        f"Leave it out, or send its text as a message. Supported: {', '.join(_READERS)}."
    )
    raise unsupported(f"{where}.type", text)


def _untyped(item: Json, where: str) -> str:
    if "role" in item:
        return "message"
    if "id" in item:
        return "item_reference"
    raise missing(f"{where}.type", f"send one of {', '.join(_READERS)}")


def _message(conversation: _Conversation, item: Json, where: str) -> None:
    role = needed(item, "role", str, where)
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"one of {', '.join(_ROLES)}")
    content = _content(item.get("content"), f"{where}.content")
    message = {"role": role, "content": content, **without(item, _MESSAGE_FIELDS)}
    if role == "assistant":
        conversation.say(message)
    else:
        conversation.add(message)


def _function_call(conversation: _Conversation, item: Json, where: str) -> None:
    function = {
        "name": needed(item, "name", str, where),
        "arguments": needed(item, "arguments", str, where),
    }
    call = {"id": needed(item, "call_id", str, where), "type": "function", "function": function}
    conversation.call({**without(item, _CALL_FIELDS), **call})


def _custom_call(conversation: _Conversation, item: Json, where: str) -> None:
    custom = {"name": needed(item, "name", str, where), "input": needed(item, "input", str, where)}
    call = {"id": needed(item, "call_id", str, where), "type": "custom", "custom": custom}
    conversation.call({**without(item, _CALL_FIELDS), **call})


def _call_output(conversation: _Conversation, item: Json, where: str) -> None:
    content = _content(item.get("output"), f"{where}.output")
    call_id = needed(item, "call_id", str, where)
    conversation.add({"role": "tool", "tool_call_id": call_id, "content": content})


def _reasoning(conversation: _Conversation, item: Json, where: str) -> None:
    text = _texts(item, "content", where) or _texts(item, "summary", where)
    conversation.think(text, opened(item.get("encrypted_content")))


def _texts(item: Json, name: str, where: str) -> str:
    parts = objects(optional(item, name, list, f"{where}.{name}") or [], f"{where}.{name}")
    return "".join(needed(part, "text", str, place) for place, part in parts)


_READERS: dict[str, _Reader] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _call_output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _call_output,
    "reasoning": _reasoning,
}

# -- parts of a content


def _content(value: Any, where: str) -> str | list[Json]:
    """A content for a chat. A single plain text is written as one: every model takes that."""
    if value is None:
        raise missing(where, "send a string, or a list of parts")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(where, "a string or a list of parts")
    parts = [_part(part, place) for place, part in objects(value, where)]
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _part(part: Json, where: str) -> Json:
    kind = needed(part, "type", str, where)
    maker = _PARTS.get(kind)
    if maker is None:
        text = f"'{where}' is a part of type {quoted(kind)}. Supported: {', '.join(_PARTS)}."
        raise unsupported(f"{where}.type", text)
    make, own = maker
    return {**without(part, own), **make(part, where)}


def _text_part(part: Json, where: str) -> Json:
    return {"type": "text", "text": needed(part, "text", str, where)}


def _refusal_part(part: Json, where: str) -> Json:
    return {"type": "refusal", "refusal": needed(part, "refusal", str, where)}


def _image_part(part: Json, where: str) -> Json:
    url = part.get("image_url")
    if url is None and part.get("file_id") is not None:
        text = f"'{where}.file_id': no files are kept here. Send 'image_url', with a URL or a data URL."
        raise unsupported(f"{where}.file_id", text)
    url = needed(part, "image_url", str, where)
    detail = optional(part, "detail", str, f"{where}.detail")
    return {"type": "image_url", "image_url": present(url=url, detail=detail)}


def _file_part(part: Json, where: str) -> Json:
    if part.get("file_url") is not None:
        text = f"'{where}.file_url': no files are fetched here. Send the file itself in 'file_data'."
        raise unsupported(f"{where}.file_url", text)
    fields = {name: optional(part, name, str, f"{where}.{name}") for name in _FILE_FIELDS}
    if fields["file_data"] is None and fields["file_id"] is None:
        raise missing(f"{where}.file_data", "send the file as a data URL")
    return {"type": "file", "file": present(**fields)}


def _audio_part(part: Json, where: str) -> Json:
    return {"type": "input_audio", "input_audio": checked(part.get("input_audio"), dict, where)}


_FILE_FIELDS = ("file_data", "file_id", "filename")
#: How a part is written for a chat, and the fields that this uses up; others (cache marks) travel on.
_PARTS: dict[str, tuple[Callable[[Json, str], Json], frozenset[str]]] = {
    "input_text": (_text_part, frozenset()),
    "output_text": (_text_part, frozenset({"annotations", "logprobs"})),
    "refusal": (_refusal_part, frozenset()),
    "input_image": (_image_part, frozenset({"detail", "file_id"})),
    "input_file": (_file_part, frozenset({"file_url", "detail", *_FILE_FIELDS})),
    "input_audio": (_audio_part, frozenset()),
}
