"""Loopback providers that speak OpenAI's, Anthropic's, Gemini's and Bedrock's true wire formats.

What one is told decides how it answers; the first word of the last message, that is:

say <text>     that text                       tools        a call of the tool ``look``
think <text>   that text, after some thought   status <n>   an error, 429 with retry-after
slow           nothing, ever                   mute         (stream) a piece, then nothing
half           a cut connection                truncate     (stream) a clean end without the end
lie            JSON of another kind            garble       no JSON at all
hangup         closed before any answer        relapse      (stream) an error event in the middle
redirect       to somewhere else                leak         an error with the caller's headers in it

A tool's result is answered with ``the tool said <result>``. Embeddings are two numbers for each text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

THOUGHT = "the sea is wide"
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBwcm92aWRlcg=="
RETRY_AFTER = "7"
CALL = {"at": "sky"}
INPUT_TOKENS, OUTPUT_TOKENS = 11, 5


@dataclass
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class WireServer:
    """A server, what it was asked, and how often a caller left it before the end."""

    event_type = "text/event-stream"

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.cut_off = 0
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[WireServer]:
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                received = await _read(reader)
                self.requests.append(received)
                watching = asyncio.ensure_future(_closed(reader))
                answering = asyncio.ensure_future(self._answer(received, writer))
                done, _ = await asyncio.wait({watching, answering}, return_when=asyncio.FIRST_COMPLETED)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                if answering not in done:
                    self.cut_off += 1
                    answering.cancel()
                    return
                if not answering.result():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(self, received: Received, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may go on."""
        if self.is_embedding(received):
            return _json(writer, 200, self.embedding(received))
        word, _, rest = self.said(received.body).partition(" ")
        match word:
            case "status":
                return _json(writer, int(rest), self.error(int(rest)), int(rest) == 429)
            case "redirect":
                writer.write(b"HTTP/1.1 307 No\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")
                return True
            case "leak":
                words = f"says {json.dumps(received.headers)}"
                return _json(writer, 400, _saying(self.error(400), words))
            case "hangup":
                return False
            case "slow":
                await asyncio.sleep(3600)
        if self.is_stream(received):
            return await self._stream(word, rest, writer)
        return self._plain(word, rest, writer)

    def _plain(self, word: str, rest: str, writer: asyncio.StreamWriter) -> bool:
        body = json.dumps(self.answer(word, rest)).encode()
        if word == "lie":
            body = b'{"hello": ["world"], "content": 7, "candidates": 8, "output": 9}'
        if word == "garble":
            body = b"<html>Bad day</html>"
        writer.write(_head(200, "application/json", len(body)) + (body[:-9] if word == "half" else body))
        return word != "half"

    async def _stream(self, word: str, rest: str, writer: asyncio.StreamWriter) -> bool:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {self.event_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for event in self._events(word, rest):
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
        if word == "mute":
            await asyncio.sleep(3600)
        if word == "half":
            return False
        writer.write(b"0\r\n\r\n")
        return True

    def _events(self, word: str, rest: str) -> list[bytes]:
        events = list(self.pieces(word, rest))
        if word in ("half", "truncate", "mute"):
            return events[: self.pieces_before_the_end]
        if word == "relapse":
            return [*events[: self.pieces_before_the_end], self.relapse()]
        if word in ("lie", "garble"):
            return [*events[:1], self.garbled()]
        return events

    # -- what a dialect says

    pieces_before_the_end = 3

    def is_embedding(self, received: Received) -> bool:
        return "embed" in received.path.lower()

    def is_stream(self, received: Received) -> bool:
        return bool(received.body.get("stream"))

    def embedding(self, received: Received) -> Any:
        raise AssertionError("this provider has no embeddings")

    def relapse(self) -> bytes:
        return _event(self.error(500))

    def garbled(self) -> bytes:
        return b"data: {half\n\n"

    def said(self, body: dict[str, Any]) -> str:
        raise AssertionError

    def answer(self, word: str, rest: str) -> Any:
        raise AssertionError

    def pieces(self, word: str, rest: str) -> Iterator[bytes]:
        raise AssertionError

    def error(self, status: int) -> Any:
        raise AssertionError


class OpenAiServer(WireServer):
    """``/v1/chat/completions`` and ``/v1/embeddings``."""

    pieces_before_the_end = 2

    def said(self, body: dict[str, Any]) -> str:
        last = body["messages"][-1]
        return f"say the tool said {last['content']}" if last["role"] == "tool" else last["content"]

    def answer(self, word: str, rest: str) -> Any:
        call = {"id": "call_1", "type": "function", "function": {"name": "look"}}
        call["function"] = {"name": "look", "arguments": json.dumps(CALL)}
        message = {"content": rest} if word != "tools" else {"content": None, "tool_calls": [call]}
        finish = "tool_calls" if word == "tools" else "stop"
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": _usage()}

    def pieces(self, word: str, rest: str) -> Iterator[bytes]:
        if word == "tools":
            for delta in _openai_call():
                yield _openai_event({"tool_calls": [delta]})
        for text in _words(rest or "one two three"):
            yield _openai_event({"content": text})
        yield _openai_event({}, "tool_calls" if word == "tools" else "stop")
        yield _event({"object": "chat.completion.chunk", "choices": [], "usage": _usage()})
        yield b"data: [DONE]\n\n"

    def error(self, status: int) -> Any:
        return {"error": {"message": f"openai says {status}", "type": "t", "param": None, "code": "c"}}

    def embedding(self, received: Received) -> Any:
        texts = received.body["input"]
        texts = [texts] if isinstance(texts, str) else texts
        data = [{"object": "embedding", "index": n, "embedding": [0.5, -0.5]} for n, _ in enumerate(texts)]
        return {
            "object": "list",
            "data": data,
            "model": "m",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }


def _usage() -> dict[str, int]:
    total = INPUT_TOKENS + OUTPUT_TOKENS
    return {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": total}


def _openai_call() -> Iterator[dict[str, Any]]:
    yield {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    for part in _halves(json.dumps(CALL)):
        yield {"index": 0, "function": {"arguments": part}}


def _openai_event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


class AnthropicServer(WireServer):
    """``/v1/messages``."""

    pieces_before_the_end = 4

    def said(self, body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        block = {"type": "text", "text": content} if isinstance(content, str) else content[-1]
        if block["type"] != "tool_result":
            return str(block["text"])
        result = block["content"]
        return f"say the tool said {result if isinstance(result, str) else result[0]['text']}"

    def answer(self, word: str, rest: str) -> Any:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": rest}]
        if word == "tools":
            blocks = [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": CALL}]
        if word == "think":
            blocks.insert(0, {"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE})
        stop = "tool_use" if word == "tools" else "end_turn"
        return {**_anthropic_message(blocks), "stop_reason": stop}

    def pieces(self, word: str, rest: str) -> Iterator[bytes]:
        start = {**_anthropic_message([]), "stop_reason": None}
        start["usage"]["output_tokens"] = 1
        yield _typed("message_start", message=start)
        number = 0
        if word == "think":
            deltas = [{"type": "thinking_delta", "thinking": part} for part in _halves(THOUGHT)]
            signed = {"type": "signature_delta", "signature": SIGNATURE}
            yield from _block(
                number, {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]
            )
            number += 1
        if word == "tools":
            parts = [{"type": "input_json_delta", "partial_json": part} for part in _halves(json.dumps(CALL))]
            opening = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
            yield from _block(number, opening, parts)
        else:
            deltas = [{"type": "text_delta", "text": text} for text in _words(rest or "one two three")]
            yield from _block(number, {"type": "text", "text": ""}, deltas)
        stop = "tool_use" if word == "tools" else "end_turn"
        delta = {"stop_reason": stop, "stop_sequence": None}
        yield _typed("message_delta", delta=delta, usage={"output_tokens": OUTPUT_TOKENS})
        yield _typed("message_stop")

    def error(self, status: int) -> Any:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "overloaded_error" if status == 529 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": f"anthropic says {status}"}}

    def relapse(self) -> bytes:
        words = {"type": "overloaded_error", "message": "Overloaded"}
        return b"event: error\n" + _event({"type": "error", "error": words})

    def garbled(self) -> bytes:
        return b'event: content_block_delta\ndata: {"type": "content_block_delta", {half\n\n'


def _anthropic_message(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": content,
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
    }


def _block(number: int, opening: dict[str, Any], deltas: list[dict[str, Any]]) -> Iterator[bytes]:
    yield _typed("content_block_start", index=number, content_block=opening)
    for delta in deltas:
        yield _typed("content_block_delta", index=number, delta=delta)
    yield _typed("content_block_stop", index=number)


def _typed(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\n".encode() + _event({"type": kind, **more})


class GeminiServer(WireServer):
    """``:generateContent``, ``:streamGenerateContent`` and ``:batchEmbedContents``."""

    pieces_before_the_end = 2

    def is_stream(self, received: Received) -> bool:
        return ":streamGenerateContent" in received.path

    def said(self, body: dict[str, Any]) -> str:
        part = body["contents"][-1]["parts"][-1]
        response = part.get("functionResponse", part.get("function_response"))
        if response is None:
            return str(part["text"])
        return f"say the tool said {next(iter(response['response'].values()))}"

    def answer(self, word: str, rest: str) -> Any:
        parts: list[dict[str, Any]] = [{"text": rest}]
        if word == "tools":
            parts = [{"functionCall": {"name": "look", "args": CALL}}]
        if word == "think":
            parts.insert(0, {"text": THOUGHT, "thought": True})
        return _candidate(parts, "STOP")

    def pieces(self, word: str, rest: str) -> Iterator[bytes]:
        if word == "think":
            yield _event(_candidate([{"text": THOUGHT, "thought": True}], None))
        if word == "tools":
            yield _event(_candidate([{"functionCall": {"name": "look", "args": CALL}}], None))
        for text in _words(rest or "one two three"):
            yield _event(_candidate([{"text": text}], None))
        yield _event(_candidate([{"text": ""}], "STOP"))

    def error(self, status: int) -> Any:
        return {"error": {"code": status, "message": f"gemini says {status}", "status": "SOME_STATUS"}}

    def embedding(self, received: Received) -> Any:
        if "requests" in received.body:
            return {"embeddings": [{"values": [0.5, -0.5]} for _ in received.body["requests"]]}
        return {"embedding": {"values": [0.5, -0.5]}}


def _candidate(parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": parts}}
    if finish:
        candidate["finishReason"] = finish
    total = INPUT_TOKENS + OUTPUT_TOKENS
    counts = {"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS}
    usage = {**counts, "totalTokenCount": total}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.0-flash"}


class BedrockServer(WireServer):
    """``/model/<name>/converse`` and ``/converse-stream``, the latter in Amazon's binary frames."""

    event_type = "application/vnd.amazon.eventstream"
    pieces_before_the_end = 3

    def is_stream(self, received: Received) -> bool:
        return received.path.endswith("/converse-stream")

    def said(self, body: dict[str, Any]) -> str:
        block = body["messages"][-1]["content"][-1]
        if "toolResult" not in block:
            return str(block["text"])
        return f"say the tool said {block['toolResult']['content'][0]['text']}"

    def answer(self, word: str, rest: str) -> Any:
        call = {"toolUse": {"toolUseId": "tooluse_1", "name": "look", "input": CALL}}
        content = [call if word == "tools" else {"text": rest}]
        return {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": "tool_use" if word == "tools" else "end_turn",
            "usage": _bedrock_usage(),
            "metrics": {"latencyMs": 1},
        }

    def pieces(self, word: str, rest: str) -> Iterator[bytes]:
        yield _frame("messageStart", {"role": "assistant"})
        if word == "tools":
            start = {"toolUse": {"toolUseId": "tooluse_1", "name": "look"}}
            yield _frame("contentBlockStart", {"contentBlockIndex": 0, "start": start})
            deltas: list[Any] = [{"toolUse": {"input": part}} for part in _halves(json.dumps(CALL))]
        else:
            deltas = [{"text": text} for text in _words(rest or "one two three")]
        for delta in deltas:
            yield _frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta})
        yield _frame("contentBlockStop", {"contentBlockIndex": 0})
        yield _frame("messageStop", {"stopReason": "tool_use" if word == "tools" else "end_turn"})
        yield _frame("metadata", {"usage": _bedrock_usage(), "metrics": {"latencyMs": 1}})

    def error(self, status: int) -> Any:
        return {"message": f"bedrock says {status}"}

    def relapse(self) -> bytes:
        return _frame("modelStreamErrorException", {"message": "the model broke"}, kind="exception")

    def garbled(self) -> bytes:
        return _frame("contentBlockDelta", b"{half")


def _bedrock_usage() -> dict[str, int]:
    total = INPUT_TOKENS + OUTPUT_TOKENS
    return {"inputTokens": INPUT_TOKENS, "outputTokens": OUTPUT_TOKENS, "totalTokens": total}


def _frame(name: str, payload: Any, kind: str = "event") -> bytes:
    """One message of Amazon's event stream: lengths, headers, payload, and checksums of all."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = b"".join(
        _frame_header(key, value)
        for key, value in (
            (":exception-type" if kind == "exception" else ":event-type", name),
            (":content-type", "application/json"),
            (":message-type", kind),
        )
    )
    lengths = struct.pack("!II", 16 + len(headers) + len(body), len(headers))
    message = lengths + struct.pack("!I", zlib.crc32(lengths)) + headers + body
    return message + struct.pack("!I", zlib.crc32(message))


def _frame_header(name: str, value: str) -> bytes:
    return struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()


# -- bytes


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    start, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(start.split(" ")[1], headers, json.loads(body))


async def _closed(reader: asyncio.StreamReader) -> None:
    """Returns when the caller closes the connection. Nothing else may come during an answer."""
    while not reader.at_eof():
        await asyncio.sleep(0.01)


def _head(status: int, kind: str, length: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{more}\r\n".encode()


def _json(writer: asyncio.StreamWriter, status: int, payload: Any, is_limit: bool = False) -> bool:
    body = json.dumps(payload).encode()
    more = f"retry-after: {RETRY_AFTER}\r\n" if is_limit else ""
    writer.write(_head(status, "application/json", len(body), more) + body)
    return True


def _saying(error: Any, words: str) -> Any:
    if isinstance(error, dict):
        return {key: words if key == "message" else _saying(value, words) for key, value in error.items()}
    return error


def _event(payload: Any) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _halves(text: str) -> tuple[str, str]:
    middle = len(text) // 2
    return text[:middle], text[middle:]
