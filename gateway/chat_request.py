"""Reads what a client asks for: just the fields the gateway acts on, everything else passes untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import ApiError

#: A body with no more brackets than this cannot be nested too deeply to be written again.
_SURELY_FLAT = 200


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion request that has been looked at."""

    body: dict[str, Any]  #: as the client sent it
    model: str  #: as the client wrote it
    use_case: str
    release: str | None  #: the part after ``@``, if a release is pinned
    user: str | None
    conversation: str | None
    stream: bool
    wants_usage: bool  #: whether the client asked for the usage chunk of a stream


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request body."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        text = f"The body is not valid JSON ({error}). Send a JSON object with content-type application/json."
        raise ApiError(400, text, code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_type")
    if raw.count(b"[") + raw.count(b"{") > _SURELY_FLAT:
        _check_depth(body)
    return body


def _check_depth(body: dict[str, Any]) -> None:
    """More can be read than can be written again, to the provider and to the log."""
    try:
        orjson.dumps([[body]])  # a line of the log has it two levels down
    except TypeError:
        text = "The body is nested too deeply. Send JSON with fewer than 200 levels."
        raise ApiError(400, text, code="invalid_json") from None


def split_model(body: dict[str, Any]) -> tuple[str, str, str | None]:
    """(model as written, use case, pinned release) of a body."""
    model = _optional(body, "model", str, "a string: the name of a use case")
    if not model:
        raise ApiError(400, "'model' is missing: name a use case.", code="missing_field", param="model")
    use_case, _, release = model.partition("@")
    return model, use_case, release or None


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    """Check the fields that the gateway acts on, and name the wrong one."""
    model, use_case, release = split_model(body)
    _check_messages(body)
    metadata = _optional(body, "metadata", dict, "an object") or {}
    options = _optional(body, "stream_options", dict, "an object") or {}
    user = _optional(body, "user", str, "a string")
    return ChatRequest(
        body=body,
        model=model,
        use_case=use_case,
        release=release,
        user=user or _optional(body, "safety_identifier", str, "a string"),
        conversation=_optional(metadata, "conversation_id", str, "a string", "metadata.conversation_id"),
        stream=bool(_optional(body, "stream", bool, "true or false")),
        wants_usage=bool(options.get("include_usage")),
    )


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        text = "'messages' must be a list with at least one message."
        raise ApiError(400, text, code="invalid_type", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            text = f"'messages[{place}]' must be an object with a 'role'."
            raise ApiError(400, text, code="invalid_type", param=f"messages[{place}]")


def _optional(source: dict[str, Any], name: str, kind: type, words: str, param: str | None = None) -> Any:
    value = source.get(name)
    if value is not None and not isinstance(value, kind):
        raise ApiError(400, f"'{param or name}' must be {words}.", code="invalid_type", param=param or name)
    return value
