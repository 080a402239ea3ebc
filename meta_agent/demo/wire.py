"""The shapes of the OpenAI wire format: completions, chunks, model lists, errors.

Pure: values in, JSON bytes out. It knows nothing of connections or of what is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from meta_agent.demo.behaviour import Behaviour

DONE = b"data: [DONE]\n\n"
_TOKEN = re.compile(r"\s*(?:\w{1,8}|[^\w\s])|\s+")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One finished answer, before it is put on the wire."""

    id: str
    model: str
    created: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, as every answer reports them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class WireError(Exception):
    """A request that is answered with an OpenAI-shaped error."""

    def __init__(self, status: int, message: str, *, kind: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code

    def body(self) -> bytes:
        """The error as JSON."""
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        return orjson.dumps({"error": error})


def split_tokens(text: str) -> list[str]:
    """Cut text into pieces about as long as real tokens; joined, they are the text again.

    >>> split_tokens("The end.")
    ['The', ' end', '.']
    """
    return _TOKEN.findall(text)


def text_of(message: Mapping[str, object]) -> str:
    """The text of one chat message, whether it is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def completion(answer: Answer) -> bytes:
    """The whole answer as one ``chat.completion``."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return orjson.dumps(_envelope(answer, "chat.completion") | {"choices": [choice], "usage": answer.usage})


def chunk(answer: Answer, delta: Mapping[str, str], finish_reason: str | None = None) -> bytes:
    """One server-sent event of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return event(orjson.dumps(_envelope(answer, "chat.completion.chunk") | {"choices": [choice]}))


def usage_chunk(answer: Answer) -> bytes:
    """The event that follows the finish when the caller asked for usage: no choices, only counts."""
    return event(
        orjson.dumps(_envelope(answer, "chat.completion.chunk") | {"choices": [], "usage": answer.usage})
    )


def event(data: bytes) -> bytes:
    """Frame one server-sent event."""
    return b"data: " + data + b"\n\n"


def model_list(owner: str, created: int, models: Mapping[str, Behaviour]) -> bytes:
    """The answer of ``GET /v1/models``, with limits and prices as OpenRouter lists them."""
    return orjson.dumps(
        {"object": "list", "data": [model_entry(owner, created, *it) for it in models.items()]}
    )


def model_entry(owner: str, created: int, model: str, behaviour: Behaviour) -> dict[str, object]:
    """One model of the list."""
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "context_length": behaviour.context_length,
        "pricing": {"prompt": behaviour.prompt_usd, "completion": behaviour.completion_usd},
    }


def group(pieces: Sequence[str], size: int) -> list[str]:
    """Join tokens into the deltas of a stream, a few at a time as real providers send them."""
    return ["".join(pieces[start : start + size]) for start in range(0, len(pieces), size)]


def _envelope(answer: Answer, kind: str) -> dict[str, object]:
    return {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        # Says who really answered, whatever a gateway in between calls the model.
        "system_fingerprint": f"fp_{answer.model}",
    }
