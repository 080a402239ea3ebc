"""The mock provider: in C if there is a compiler, else raw asyncio. It answers at once and always the same.

A plain answer has about 1 KB; a stream's 50 pieces come one by one, a moment apart, as tokens do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, cast

from benchmarks.gateway import native
from benchmarks.gateway.processes import free_port, started

STORY = "The fox walked along the river and told the badger of the sea beyond the hills. "
CHUNKS = 50
GAP_US = 500


def plain_answer() -> bytes:
    """One HTTP response."""
    message = {"role": "assistant", "content": STORY * 12}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def stream_pieces(usage: bool) -> list[bytes]:
    """A streamed HTTP response, as it is written: 49 words, then the end."""
    words = [_event(_chunk([_choice({"content": f"{word} "})])) for word in (STORY * 4).split()[: CHUNKS - 1]]
    end = _event(_chunk([_choice({}, "stop")]))
    end += _event(_chunk([]) | {"usage": _USAGE}) if usage else b""
    return [_STREAM_HEAD + words[0], *words[1:], end + _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


_USAGE = {"prompt_tokens": 200, "completion_tokens": 250, "total_tokens": 450}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _chunk(choices: list[dict[str, object]]) -> dict[str, object]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mock"}
    return {**head, "choices": choices}


def _event(chunk: dict[str, object]) -> bytes:
    return _http_chunk(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextlib.contextmanager
def running_provider(directory: Path, on: set[int] | None = None) -> Iterator[int]:
    """A mock provider, by its port."""
    port = free_port()
    if program := native.build("provider", directory):
        answers = directory / "answers"
        answers.mkdir(exist_ok=True)
        (answers / "plain").write_bytes(plain_answer())
        for name, usage in (("stream", False), ("stream_usage", True)):
            pieces = (b"%d\n%s" % (len(piece), piece) for piece in stream_pieces(usage))
            (answers / name).write_bytes(b"".join(pieces))
        command = [str(program), str(port), str(answers), str(GAP_US)]
    else:
        command = [sys.executable, "-m", __name__, str(port)]
    with started(command, port, on=on):
        yield port


class SlowProvider(asyncio.Protocol):
    """The same in Python."""

    plain = plain_answer()
    pieces: ClassVar = {usage: stream_pieces(usage) for usage in (False, True)}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport, self.buffer = cast(asyncio.Transport, transport), b""  # uvloop's is none by name
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.I)
        if not separator or (length and len(body) < int(length[1])):
            return
        self.buffer, body = b"", body.replace(b" ", b"")
        if b'"stream":true' in body:
            self.send(self.pieces[b'"include_usage":true' in body], 0)
        else:
            self.transport.write(self.plain)

    def send(self, pieces: list[bytes], number: int) -> None:
        """One piece of a stream, and the others after it."""
        if self.transport.is_closing():  # the load ended in the middle
            return
        self.transport.write(pieces[number])
        if number + 1 < len(pieces):
            asyncio.get_running_loop().call_later(GAP_US / 1e6, self.send, pieces, number + 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(SlowProvider, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(int(sys.argv[1])))
