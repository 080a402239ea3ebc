"""Carries a model's signed thinking through the Responses API and back, without its text.

Chat completions have it as ``thinking_blocks`` (text and signature) beside ``reasoning_content`` (all
the text). A Responses client sees the text and keeps ``encrypted_content`` without reading it, so that
is where the signatures travel, each with the number of characters it signs. The text itself takes only
the one way that the guard has looked at.
"""

from __future__ import annotations

import base64
from typing import Any

import orjson

_MARK = "chat1."  #: a seal of another maker cannot be opened here and is left alone


class Sealer:
    """Gathers the signatures of a reasoning, however its blocks are cut."""

    __slots__ = ("_blocks", "_characters")

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._characters = 0

    def take(self, blocks: Any) -> None:
        """Note the next blocks, or pieces of blocks; a signature ends one."""
        for block in blocks if isinstance(blocks, list) else ():
            if not isinstance(block, dict):
                continue
            if block.get("type") == "redacted_thinking":
                self._blocks.append({"type": "redacted_thinking", "data": block.get("data")})
                continue
            thinking, signature = block.get("thinking"), block.get("signature")
            if isinstance(thinking, str):
                self._characters += len(thinking)
            if signature and isinstance(signature, str):
                self._blocks.append({"type": "thinking", "length": self._characters, "signature": signature})
                self._characters = 0

    def sealed(self) -> str | None:
        """The ``encrypted_content`` for what was gathered since the last time, if anything was."""
        if not self._blocks:
            return None
        blocks, self._blocks = self._blocks, []
        return _MARK + base64.b64encode(orjson.dumps(blocks)).decode()


def opened(seal: Any) -> list[dict[str, Any]]:
    """What a seal holds; nothing if it is not one of ours."""
    if not isinstance(seal, str) or not seal.startswith(_MARK):
        return []
    try:
        blocks = orjson.loads(base64.b64decode(seal[len(_MARK) :], validate=True))
    except ValueError:
        return []
    return blocks if isinstance(blocks, list) and all(map(_is_block, blocks)) else []


def _is_block(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    if block.get("type") == "redacted_thinking":
        return isinstance(block.get("data"), str)
    length = block.get("length")
    return isinstance(length, int) and length >= 0 and isinstance(block.get("signature"), str)


def thinking_blocks(text: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The signed blocks again. None if the text is not what was signed: no provider would take them."""
    if sum(block.get("length", 0) for block in blocks) != len(text):
        return []
    made = []
    for block in blocks:
        if block["type"] == "redacted_thinking":
            made.append(block)
            continue
        piece, text = text[: block["length"]], text[block["length"] :]
        made.append({"type": "thinking", "thinking": piece, "signature": block["signature"]})
    return made
