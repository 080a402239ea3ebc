"""The library's answers as OpenAI's JSON."""

from __future__ import annotations

from typing import Any

#: What OpenAI's clients know around the choices; the library adds its own reading of other dialects.
_ENVELOPE = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "data", "system_fingerprint", "service_tier"}
)
#: What must come back with the next request. The rest of the library's own fields repeats the message, or
#: is text of other sources that nobody behind this would look at.
_KEPT = frozenset({"thought_signature", "thought_signatures"})


def completion(answer: Any, model: str) -> dict[str, Any]:
    """A whole chat completion."""
    payload = _plain(answer, model)
    for choice in payload.get("choices", ()):
        message = choice.setdefault("message", {"role": "assistant"})
        message.setdefault("content", None)
        _tidy(message)
        _tidy(choice)
    return payload


def chunk(answer: Any, model: str) -> dict[str, Any]:
    """A piece of one."""
    payload = _plain(answer, model)
    for choice in payload.setdefault("choices", []):
        choice.setdefault("finish_reason", None)
        _tidy(choice.setdefault("delta", {}))
        _tidy(choice)
    if "usage" in payload and not any(map(_says_something, payload["choices"])):
        payload["choices"] = []
    return payload


def embeddings(answer: Any, model: str) -> dict[str, Any]:
    """Embeddings."""
    return _plain(answer, model)


def _plain(answer: Any, model: str) -> dict[str, Any]:
    given: dict[str, Any] = answer.model_dump(mode="json", exclude_none=True)
    payload = {name: value for name, value in given.items() if name in _ENVELOPE}
    if "usage" in payload:
        payload["usage"].pop("cost", None)  # the library's price list is not the gateway's
    return {**payload, "model": model}


def _says_something(choice: dict[str, Any]) -> bool:
    return bool(choice["finish_reason"] or any(choice["delta"].values()))


def _tidy(part: dict[str, Any]) -> None:
    own = part.pop("provider_specific_fields", None)
    kept = {name: value for name, value in (own or {}).items() if name in _KEPT and value}
    if kept:
        part["provider_specific_fields"] = kept
    for name in [name for name, value in part.items() if value == []]:
        del part[name]
