"""A loopback provider that can do what real ones can: tools, schemas, pictures, choices, thinking, vectors.

What it says follows from what it is asked, so that a test can tell what has reached it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from tests.gateway.fake_upstream import FakeUpstream

Json = dict[str, Any]

THOUGHT = "They want an answer, so I give one."
SIGNATURE = "c2lnbmVk"
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
#: What it puts into arguments and answers with a schema, by the schema's type.
_SAMPLES: dict[str, Any] = {"string": "Paris", "integer": 7, "number": 1.5, "boolean": True, "array": []}


class AbleUpstream(FakeUpstream):
    """Answers chat completions and embeddings. ``status:429`` fails as with the other one."""

    async def _answer(self, request: Json, writer: asyncio.StreamWriter) -> str:
        if ":" in request["model"]:
            return await super()._answer(request, writer)
        if "/embeddings " in self.heads[-1].split("\r\n")[0]:
            return _send(writer, _vectors(request))
        if not request.get("stream"):
            return _send(writer, _completion(request))
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for chunk in _chunks(request):
            data = b"data: %b\n\n" % json.dumps(chunk).encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        return "keep"


def _send(writer: asyncio.StreamWriter, payload: Json) -> str:
    body = json.dumps(payload).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return "keep"


# -- what is said


def _message(request: Json) -> Json:
    message: Json = {"role": "assistant", "content": None, **_thoughts(request)}
    last = request["messages"][-1]
    if last["role"] == "tool":
        message["content"] = f"The tool says: {_text(last['content'])}"
    elif request.get("tools") and request.get("tool_choice") != "none":
        message["tool_calls"] = _calls(request)
    elif request.get("response_format", {}).get("type") == "json_schema":
        schema = request["response_format"]["json_schema"]["schema"]
        message["content"] = json.dumps(_sample(schema, schema.get("$defs", {})))
    else:
        message["content"] = f"You said: {_text(last['content'])}"
    return message


def _thoughts(request: Json) -> Json:
    if request.get("thinking", {}).get("type") == "enabled":
        blocks = [{"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE}]
        return {"reasoning_content": THOUGHT, "thinking_blocks": blocks}
    return {"reasoning_content": THOUGHT} if request.get("reasoning_effort") else {}


def _calls(request: Json) -> list[Json]:
    """One call of the first tool; of every tool where several calls are allowed in so many words."""
    tools = request["tools"] if request.get("parallel_tool_calls") else request["tools"][:1]
    calls = []
    for number, tool in enumerate(tools):
        schema = tool["function"].get("parameters") or {}
        arguments = json.dumps(_sample(schema, schema.get("$defs", {})))
        function = {"name": tool["function"]["name"], "arguments": arguments}
        calls.append({"id": f"call_{number}", "type": "function", "function": function})
    return calls


def _sample(schema: Json, definitions: Json) -> Any:
    if "$ref" in schema:
        return _sample(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        return {name: _sample(each, definitions) for name, each in properties.items()}
    return _SAMPLES.get(schema.get("type", "string"))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text") or f"[{part['type']}]" for part in content)


def _finish(message: Json) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


# -- how it is written


def _envelope(request: Json, kind: str) -> Json:
    more = {"x_future": request["x_future"]} if "x_future" in request else {}
    return {
        "id": "up_1",
        "object": kind,
        "created": 1,
        "model": request["model"],
        "system_fingerprint": "fp",
        **more,
    }


def _logprobs(words: list[str]) -> Json:
    return {
        "content": [
            {"token": word, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": []}
            for word in words
        ],
        "refusal": None,
    }


def _completion(request: Json) -> Json:
    choices = []
    for index in range(request.get("n") or 1):
        message = _message(request)
        choice = {"index": index, "message": message, "finish_reason": _finish(message), "logprobs": None}
        if request.get("logprobs"):
            choice["logprobs"] = _logprobs(_words(message["content"]))
        choices.append(choice)
    return {**_envelope(request, "chat.completion"), "choices": choices, "usage": USAGE}


def _chunks(request: Json) -> Iterator[Json]:
    envelope = _envelope(request, "chat.completion.chunk")
    message = _message(request)
    for index in range(request.get("n") or 1):
        for delta in _deltas(message):
            choice = {"index": index, "delta": delta, "finish_reason": None}
            if request.get("logprobs") and delta.get("content"):
                choice["logprobs"] = _logprobs([delta["content"]])
            yield {**envelope, "choices": [choice]}
        yield {**envelope, "choices": [{"index": index, "delta": {}, "finish_reason": _finish(message)}]}
    if (request.get("stream_options") or {}).get("include_usage"):
        yield {**envelope, "choices": [], "usage": USAGE}


def _deltas(message: Json) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    signed = message.get("thinking_blocks")
    for word in _words(message.get("reasoning_content") or ""):
        blocks = {"thinking_blocks": [{"type": "thinking", "thinking": word}]} if signed else {}
        yield {"reasoning_content": word, **blocks}
    if signed:
        yield {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": SIGNATURE}]}
    for word in _words(message["content"] or ""):
        yield {"content": word}
    for index, call in enumerate(message.get("tool_calls") or ()):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"tool_calls": [{"index": index, **call, "function": {"name": name, "arguments": ""}}]}
        for at in range(0, len(arguments), 5):
            piece = {"arguments": arguments[at : at + 5]}
            yield {"tool_calls": [{"index": index, "function": piece}]}


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [f"{word} " for word in words[:-1]] + words[-1:]


def _vectors(request: Json) -> Json:
    given = request["input"]
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    data = []
    for index, entry in enumerate([given] if one else given):
        vector = [float(len(entry)), *([0.5] * ((request.get("dimensions") or 4) - 1))]
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        as_text = request.get("encoding_format") == "base64"
        data.append({"object": "embedding", "index": index, "embedding": packed if as_text else vector})
    usage = {"prompt_tokens": 6, "total_tokens": 6}
    return {"object": "list", "data": data, "model": request["model"], "usage": usage}
