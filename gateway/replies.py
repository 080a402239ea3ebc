"""Whole answers and refusals, with the headers that callers read."""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import ApiError
from gateway.http_message import Header, Reply

_JSON = (b"content-type", b"application/json")


def send_json(reply: Reply, status: int, body: bytes, headers: list[Header] | None = None) -> None:
    """A whole answer."""
    reply.send(status, [_JSON, *headers] if headers else [_JSON], body)


def send_error(
    reply: Reply,
    error: ApiError,
    headers: list[Header] | None = None,
    shape: Callable[[ApiError], bytes] = ApiError.body,
) -> None:
    """A refusal, in OpenAI's shape or another."""
    extra = list(headers or ())
    if error.retry_after:
        extra.append((b"retry-after", error.retry_after.encode("latin-1", "replace")))
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    send_json(reply, error.status, shape(error), extra)
