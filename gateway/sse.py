"""Server-sent events, both ways: bytes into payloads, payloads into bytes."""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"


class EventReader:
    """Cuts a byte stream into the data of its events, wherever the network cut it."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes of an event that is not complete yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that is complete by now."""
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            # A lone CR at the end may be half of a CRLF.
            tail = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        *events, self._rest = data.split(b"\n\n")
        payloads = []
        for event in events:
            plain = event.startswith(b"data: ") and b"\n" not in event  # nearly all of them
            payload = event[6:] if plain else _data_of(event)
            if payload:
                payloads.append(payload)
        return payloads


def _data_of(event: bytes) -> bytes:
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def event(payload: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"
