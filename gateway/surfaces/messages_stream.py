"""Writes a stream of Anthropic's events from chunks of a chat completion.

Anthropic's blocks follow one another, chunks may bring several tool calls at once: a later block waits
until the one before it is whole.
"""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import ApiError
from gateway.surface import Asked
from gateway.surfaces.messages_answer import (
    envelope,
    error_payload,
    first_choice,
    write_stop,
    write_usage,
)
from gateway.surfaces.messages_speech import DELTA_FIELDS, Block, Speech

#: Most events are deltas; only the text of them must be encoded.
_DELTAS = {
    delta: b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%%d,'
    b'"delta":{"type":"%b","%b":%%b}}\n\n' % (delta.encode(), field.encode())
    for delta, field in DELTA_FIELDS.items()
}


class MessagesWriter:
    """One stream."""

    __slots__ = ("_asked", "_begun", "_ending", "_index", "_opened", "_speech", "_usage")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._speech = Speech(asked.interaction_id)
        self._begun = False
        self._index = 0  # of the block that is being written
        self._opened = False  # whether its beginning is written
        self._usage: Any = None
        self._ending: dict[str, Any] = {}  # the choice that said why it ended

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """The events for one chunk."""
        usage = chunk.get("usage")
        if usage:
            self._usage = usage
        choice = first_choice(chunk)
        if choice is not None:
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._speech.take(delta)
            if choice.get("finish_reason"):
                self._ending = choice
        written = self._blocks()
        return written if self._begun else self._begin() + written

    def end(self) -> bytes:
        """What waited, and the events that end the message."""
        begin = b"" if self._begun else self._begin()
        blocks = self._blocks(ending=True)
        stop = write_stop(self._ending, self._speech, self._asked)
        delta = {"type": "message_delta", "delta": stop, "usage": write_usage(self._usage)}
        return begin + blocks + _event(delta) + _event({"type": "message_stop"})

    def fail(self, error: ApiError) -> bytes:
        """The event that tells of an error; nothing may follow it."""
        return _event(error_payload(error))

    def _begin(self) -> bytes:
        self._begun = True
        usage = {**write_usage(self._usage), "output_tokens": 0}
        message = {**envelope(self._asked), "content": [], "stop_reason": None, "stop_sequence": None}
        return _event({"type": "message_start", "message": {**message, "usage": usage}})

    def _blocks(self, ending: bool = False) -> bytes:
        """Everything that may be written by now."""
        blocks = self._speech.blocks
        written: list[bytes] = []
        while blocks and (self._opened or ending or blocks[0].is_named):
            block = blocks[0]
            self._write(block, written)
            if not ending and (len(blocks) == 1 or not block.is_whole):
                break
            written.append(_event({"type": "content_block_stop", "index": self._index}))
            blocks.popleft()
            self._opened = False
            self._index += 1
        return b"".join(written)

    def _write(self, block: Block, written: list[bytes]) -> None:
        if not self._opened:
            self._opened = True
            start = {"type": "content_block_start", "index": self._index, "content_block": block.start}
            written.append(_event(start))
        for delta, text in block.deltas:
            written.append(_DELTAS[delta] % (self._index, orjson.dumps(text)))
        block.deltas.clear()


def _event(payload: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), orjson.dumps(payload))
