"""Cuts what a model says into Anthropic's content blocks, from whole messages and from deltas alike.

A whole message is read as one delta, so an answer and a stream of it come to the same blocks. Text that
follows a block of another kind begins a new block; pieces of a tool call find theirs by its number.
Writes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

#: Kinds of delta, and the field of a block that each one makes longer.
DELTA_FIELDS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
#: Where the input of a tool call stands that is no JSON object; Anthropic's own advice for such input.
INVALID_INPUT = "INVALID_JSON"
#: Arguments with no more brackets than this cannot be nested too deeply to be written again.
_SURELY_FLAT = 200
#: How often arguments are read to see if they are whole; after that the next block waits for the end.
_TRIES = 64
#: Where models think aloud; the first one that a delta has is read.
_REASONING = ("reasoning_content", "reasoning")


class Block:
    """A content block that grows."""

    __slots__ = ("_arguments", "_sealed", "_tries", "deltas", "kind", "start")

    def __init__(self, start: dict[str, Any]) -> None:
        self.start = start  #: the block before its first delta
        self.kind: str = start["type"]
        self.deltas: list[tuple[str, str]] = []  #: kind and text of those that nobody has written yet
        self._arguments: list[str] = []
        self._sealed = False
        self._tries = _TRIES

    def grow(self, delta: str, text: str) -> None:
        """Add a piece."""
        self.deltas.append((delta, text))
        if self.kind == "tool_use":
            self._arguments.append(text)
        elif delta == "signature_delta":
            self._sealed = True

    def takes(self, kind: str) -> bool:
        """Whether more of this kind belongs here. A signature ends its thought."""
        return self.kind == kind and not self._sealed

    @property
    def is_named(self) -> bool:
        """Whether its beginning can be written: a tool call must say whom it calls."""
        return self.kind != "tool_use" or self.start["name"] != ""

    @property
    def is_whole(self) -> bool:
        """Whether nothing that matters can follow: only the arguments of a call tell their own end."""
        return self.kind != "tool_use" or self._is_json()

    def _is_json(self) -> bool:
        # A look at the end spares most attempts to read arguments that are in the middle.
        if not self._arguments or not self._arguments[-1].rstrip().endswith("}") or not self._tries:
            return False
        self._tries -= 1
        self._arguments = ["".join(self._arguments)]
        return _read_object(self._arguments[0]) is not None

    def as_content(self) -> dict[str, Any]:
        """The whole block, of which nothing has been written."""
        if self.kind == "tool_use":
            return {**self.start, "input": _input("".join(self._arguments))}
        content = dict(self.start)
        for delta, text in self.deltas:
            content[DELTA_FIELDS[delta]] += text
        return content


class Speech:
    """What a model says in one answer, block by block."""

    __slots__ = ("_call_prefix", "_calls", "_reasoned", "blocks", "call_count", "refused")

    def __init__(self, interaction_id: str) -> None:
        self.blocks: deque[Block] = deque()  #: a writer takes from the left what it has written
        self.refused = False
        self.call_count = 0
        self._call_prefix = f"toolu_{interaction_id}_"
        self._calls: dict[int, Block] = {}  # by the number that deltas have for them
        self._reasoned = False

    def take(self, delta: dict[str, Any]) -> None:
        """Take the next delta, or a whole message."""
        self._take_thoughts(delta)
        content = delta.get("content")
        if content:
            self._take_content(content)
        refusal = delta.get("refusal")
        if refusal and isinstance(refusal, str):
            self.refused = True
            self._say("text", refusal)
        calls = delta.get("tool_calls")
        if calls and isinstance(calls, list):
            for place, call in enumerate(calls):
                self._take_call(place, call)

    # -- text

    def _take_content(self, content: Any) -> None:
        if isinstance(content, str):
            self._say("text", content)
            return
        for part in _objects(content):
            if part.get("type") == "thinking":
                inner = part.get("thinking")
                self._say("thinking", inner if isinstance(inner, str) else "".join(_texts(inner)))
            else:
                self._say("text", "".join(_texts([part])))

    def _say(self, kind: str, text: str) -> None:
        if text:
            self._block(kind).grow(f"{kind}_delta", text)

    def _block(self, kind: str) -> Block:
        """The last block if it takes this kind, or a new one."""
        if self.blocks and self.blocks[-1].takes(kind):
            return self.blocks[-1]
        signature = {"signature": ""} if kind == "thinking" else {}
        return self._begin({"type": kind, kind: "", **signature})

    def _begin(self, start: dict[str, Any]) -> Block:
        block = Block(start)
        self.blocks.append(block)
        return block

    # -- thoughts

    def _take_thoughts(self, delta: dict[str, Any]) -> None:
        """Reasoning is what the guard reads; blocks are believed as far as they say the same.

        Otherwise a text that was held back would leave by its second copy.
        """
        reasoning = next((text for name in _REASONING if isinstance(text := delta.get(name), str)), None)
        blocks = delta.get("thinking_blocks")
        if not blocks:
            if reasoning:
                self._reasoned = True
                self._say("thinking", reasoning)
            return
        thoughts = list(_objects(blocks))
        told = "".join(map(_thought, thoughts)) == reasoning or (reasoning is None and not self._reasoned)
        self._reasoned = self._reasoned or bool(reasoning)
        if reasoning and not told:
            self._say("thinking", reasoning)
        for thought in thoughts:
            self._take_thought(thought, told)

    def _take_thought(self, thought: dict[str, Any], told: bool) -> None:
        data, signature = thought.get("data"), thought.get("signature")
        if thought.get("type") == "redacted_thinking" and isinstance(data, str):
            self._begin({"type": "redacted_thinking", "data": data})
            return
        if told:
            self._say("thinking", _thought(thought))
        if signature and isinstance(signature, str):
            self._block("thinking").grow("signature_delta", signature)

    # -- tool calls

    def _take_call(self, place: int, call: Any) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return
        index = call.get("index")
        number = index if isinstance(index, int) else place
        name, call_id = _string(function.get("name")), _string(call.get("id"))
        block = self._calls.get(number)
        if block is None or _is_another(block, name, call_id):
            block = self._calls[number] = self._begin_call(name, call_id)
        elif name and not block.is_named:
            block.start["name"] = name
        arguments = function.get("arguments")
        if arguments and isinstance(arguments, str):
            block.grow("input_json_delta", arguments)

    def _begin_call(self, name: str, call_id: str) -> Block:
        self.call_count += 1
        call_id = call_id or f"{self._call_prefix}{self.call_count}"
        return self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})


def _is_another(block: Block, name: str, call_id: str) -> bool:
    """Some servers give every call of an answer the same number; a name with a new id tells them apart."""
    return bool(name and call_id) and block.is_named and call_id != block.start["id"]


def _input(text: str) -> dict[str, Any]:
    """The input of a tool call; what is no JSON object stands under ``INVALID_INPUT`` as it is."""
    if not text.strip():
        return {}
    value = _read_object(text)
    return {INVALID_INPUT: text} if value is None else value


def _read_object(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
        if text.count("[") + text.count("{") > _SURELY_FLAT:
            orjson.dumps([[[[value]]]])  # more can be read than can be written, four levels down a message
    except (orjson.JSONDecodeError, TypeError):
        return None
    return value if isinstance(value, dict) else None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (entry for entry in (value if isinstance(value, list) else ()) if isinstance(entry, dict))


def _texts(parts: Any) -> Iterator[str]:
    return (text for part in _objects(parts) if isinstance(text := part.get("text"), str))


def _thought(block: dict[str, Any]) -> str:
    return _string(block.get("thinking"))


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
