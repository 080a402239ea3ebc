"""Reads what a client asks for: just the fields the gateway acts on, everything else passes untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.errors import ApiError

#: A body with no more brackets than this cannot be nested too deeply to be written again.
_SURELY_FLAT = 200


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


def split_model(body: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """(model as written, use case, pinned release) of a body."""
    model = _optional(body, "model", str, "a string: the name of a use case")
    if not model:
        raise ApiError(400, "'model' is missing: name a use case.", code="missing_field", param="model")
    use_case, _, release = model.partition("@")
    return model, use_case, release or None


def check_chat(body: dict[str, Any]) -> bool:
    """Check the fields that the gateway acts on, and name the wrong one; whether a stream is wanted."""
    _check_messages(body)
    if "stream_options" in body:
        _optional(body, "stream_options", dict, "an object")
    return "stream" in body and bool(_optional(body, "stream", bool, "true or false"))


def check_embeddings(body: dict[str, Any]) -> None:
    """The same for a request of embeddings."""
    if not body.get("input"):
        text = "'input' must be a text or a list of texts."
        raise ApiError(400, text, code="missing_field", param="input")
    if not isinstance(body["input"], str | list):
        raise ApiError(400, "'input' must be a text or a list.", code="invalid_type", param="input")


def user_of(body: dict[str, Any]) -> str | None:
    """Whom a request is made for, as the application names that person."""
    if "user" not in body and "safety_identifier" not in body:
        return None
    user: str | None = _optional(body, "user", str, "a string")
    return user or _optional(body, "safety_identifier", str, "a string")


def conversation_of(body: dict[str, Any]) -> str | None:
    """The conversation that a request goes on with."""
    if "metadata" not in body:
        return None
    metadata = _optional(body, "metadata", dict, "an object") or {}
    found: str | None = _optional(metadata, "conversation_id", str, "a string", "metadata.conversation_id")
    return found


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        text = "'messages' must be a list with at least one message."
        raise ApiError(400, text, code="invalid_type", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            text = f"'messages[{place}]' must be an object with a 'role'."
            raise ApiError(400, text, code="invalid_type", param=f"messages[{place}]")


def _optional(source: Mapping[str, Any], name: str, kind: type, words: str, param: str | None = None) -> Any:
    value = source.get(name)
    if value is not None and not isinstance(value, kind):
        raise ApiError(400, f"'{param or name}' must be {words}.", code="invalid_type", param=param or name)
    return value
