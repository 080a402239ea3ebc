"""Writes the ``response`` object around output items: what was asked, how it ended, what it took.

Knows no item from inside, and no clock: ``completed_at`` stays empty.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ApiError
from gateway.surface import Asked

Json = dict[str, Any]

#: What a response repeats of its request, and what it says where the request said nothing.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": None,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "user": None,
}
#: What this gateway never does.
_FIXED: Json = {
    "background": False,
    "max_tool_calls": None,
    "previous_response_id": None,
    "store": False,
    "truncation": "disabled",
}
#: Why an answer is not whole, by the reason that a chat gives.
_CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
_PLAIN_TEXT = {"type": "text"}


def cut_off(finish_reason: Any) -> str | None:
    """Why the answer is not whole; None for one that is."""
    return _CUT_OFF.get(finish_reason) if isinstance(finish_reason, str) else None


def wants_summary(body: Json) -> bool:
    """Whether the client looks for the reasoning among the summaries."""
    reasoning = body.get("reasoning")
    return isinstance(reasoning, dict) and bool(reasoning.get("summary") or reasoning.get("generate_summary"))


class ResponseObject:
    """What all versions of one response have in common, from its begin to its end."""

    __slots__ = ("_common",)

    def __init__(self, asked: Asked) -> None:
        body = asked.body
        given = {name: value for name in _REPEATED if (value := body.get(name)) is not None}
        self._common: Json = {
            "id": f"resp_{asked.interaction_id}",
            "object": "response",
            "created_at": asked.created,
            "completed_at": None,
            "model": asked.model,
            **_FIXED,
            **_REPEATED,
            **given,
            "text": _text(body.get("text")),
        }

    def begun(self) -> Json:
        """The response before anything was said."""
        return self._written("in_progress", [])

    def ended(self, output: list[Json], reason: str | None, usage: Any, tier: Any) -> Json:
        """The response at its end; ``reason`` says why it is not whole."""
        response = self._written("incomplete" if reason else "completed", output)
        response["incomplete_details"] = {"reason": reason} if reason else None
        response["usage"] = usage_of(usage)
        if isinstance(tier, str) and tier in _TIERS:
            response["service_tier"] = tier
        return response

    def failed(self, output: list[Json], error: ApiError, usage: Any) -> Json:
        """The response that broke."""
        response = self._written("failed", output)
        response["error"] = {"code": _error_code(error), "message": error.message}
        response["usage"] = usage_of(usage)
        return response

    def _written(self, status: str, output: list[Json]) -> Json:
        return {
            **self._common,
            "status": status,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }


def _text(text: Any) -> Json:
    given = (
        {name: value for name, value in text.items() if value is not None} if isinstance(text, dict) else {}
    )
    return {"format": _PLAIN_TEXT, **given}


def _error_code(error: ApiError) -> str:
    """The nearest of the few codes that a response may have."""
    if error.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if error.status < 500 else "server_error"


def usage_of(usage: Any) -> Json | None:
    """The tokens of a chat completion, as a response counts them."""
    if not isinstance(usage, dict):
        return None
    asked, answered = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    inward, outward = _details(usage, "prompt_tokens_details"), _details(usage, "completion_tokens_details")
    written = _count(inward, "cache_write_tokens") or _count(inward, "cache_creation_tokens")
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": _count(inward, "cached_tokens"),
            "cache_write_tokens": written or _count(usage, "cache_creation_input_tokens"),
        },
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": _count(outward, "reasoning_tokens")},
        "total_tokens": _count(usage, "total_tokens") or asked + answered,
    }


def _details(usage: Json, name: str) -> Json:
    details = usage.get(name)
    return details if isinstance(details, dict) else {}


def _count(source: Json, name: str) -> int:
    count = source.get(name)
    return count if isinstance(count, int) and not isinstance(count, bool) else 0
