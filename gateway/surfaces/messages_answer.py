"""Writes a whole answer, and what whole answers and streams share: why it stopped, what it used, errors.

Knows OpenAI's finish reasons and usage, and litellm's additions for the cache; no block's inside.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ApiError
from gateway.surface import Asked
from gateway.surfaces.messages_speech import Speech

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
#: Where servers name the stop sequence that they met, if they do.
_STOP_SEQUENCE = ("stop_sequence", "stop_reason")
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def write_message(payload: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """A whole chat completion as a message."""
    choice = first_choice(payload) or {}
    speech = Speech(asked.interaction_id)
    message = choice.get("message")
    if isinstance(message, dict):
        speech.take(message)
    return {
        **envelope(asked),
        "content": [block.as_content() for block in speech.blocks],
        **write_stop(choice, speech, asked),
        "usage": write_usage(payload.get("usage")),
    }


def envelope(asked: Asked) -> dict[str, Any]:
    """What every message begins with."""
    return {"id": f"msg_{asked.interaction_id}", "type": "message", "role": "assistant", "model": asked.model}


def first_choice(payload: dict[str, Any]) -> dict[str, Any] | None:
    """The one choice that a message has room for."""
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index") in (0, None):
            return choice
    return None


def write_stop(choice: dict[str, Any], speech: Speech, asked: Asked) -> dict[str, Any]:
    """Why the answer ended, told of the choice that names a reason."""
    sequence = _stop_sequence(choice, asked)
    if sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    finish = choice.get("finish_reason")
    reason = _STOP_REASONS.get(finish, "end_turn") if isinstance(finish, str) else "end_turn"
    if reason in ("end_turn", "tool_use"):
        # Clients act on this word, and not every server says it when it calls.
        reason = "tool_use" if speech.call_count else "refusal" if speech.refused else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}


def _stop_sequence(choice: dict[str, Any], asked: Asked) -> str | None:
    wanted = asked.body.get("stop_sequences")
    if not wanted or not isinstance(wanted, list):
        return None
    told = (choice.get(name) for name in _STOP_SEQUENCE)
    return next((text for text in told if isinstance(text, str) and text in wanted), None)


def write_usage(usage: Any) -> dict[str, Any]:
    """Usage as Anthropic counts: what was read from the cache or written to it is not input."""
    usage = _object(usage)
    prompt = _object(usage.get("prompt_tokens_details"))
    completion = _object(usage.get("completion_tokens_details"))
    read = _count(prompt.get("cached_tokens"), usage.get("cache_read_input_tokens"))
    written = _count(
        usage.get("cache_creation_input_tokens"),
        prompt.get("cache_creation_tokens"),
        prompt.get("cache_write_tokens"),
    )
    written_usage: dict[str, Any] = {
        "input_tokens": max(_count(usage.get("prompt_tokens")) - read - written, 0),
        "output_tokens": _count(usage.get("completion_tokens")),
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
    }
    thought = _count(completion.get("reasoning_tokens"))
    if thought:
        written_usage["output_tokens_details"] = {"thinking_tokens": thought}
    return written_usage


def _count(*values: Any) -> int:
    """The first of the values that is a number of tokens."""
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def error_payload(error: ApiError) -> dict[str, Any]:
    """An error as Anthropic's clients read it, in an answer or as the event that ends a stream."""
    kind = _ERROR_TYPES.get(error.status) or ("api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": None}
