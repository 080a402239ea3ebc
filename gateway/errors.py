"""Every way a call can fail, and what the caller is told of it.

    GatewayError
    ├── ApiError                 what a caller reads, in OpenAI's shape
    └── UpstreamError            a provider failed us
        ├── NotConfiguredError   a route names a provider that this gateway does not have
        ├── ConnectError         nobody answered the door
        ├── HungUpError          it closed the connection without a word
        ├── BusyError            our own limit of connections to it is reached
        ├── CircuitOpenError     too many of its last calls failed: it was not asked
        ├── HedgedError          another deployment answered sooner
        ├── UpstreamTimeoutError it took too long
        ├── UpstreamStatusError  it answered with an error status
        ├── InvalidAnswerError   it answered with something that is no chat completion
        └── StreamBrokenError    its stream ended in the middle

The one place where foreign errors become ours: a provider's words reach a caller only where the
caller can act on them, and a provider's 401 never looks like the caller's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

#: Faults of a request that every deployment would name; the caller can repair them.
CALLERS_FAULT = frozenset({400, 413, 422})
_MESSAGE_LIMIT = 500
_NAME_LIMIT = 100


class GatewayError(Exception):
    """Something the gateway expects to go wrong."""


@dataclass(eq=False)
class ApiError(GatewayError):
    """An answer that refuses or regrets, with a message that says what to do."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: str | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        """The error object as OpenAI's clients expect it."""
        return orjson.dumps(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The same, not yet bytes."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class UpstreamError(GatewayError):
    """A provider failed us; ``code`` names how, in log rows and in answers."""

    code = "upstream_error"
    status: int | None = None


class NotConfiguredError(UpstreamError):
    """A route names a provider that this gateway does not have."""

    code = "provider_not_configured"


class ConnectError(UpstreamError):
    """The provider cannot be reached."""

    code = "upstream_unreachable"


class HungUpError(UpstreamError):
    """The provider took the request and closed the connection: what it did with it, nobody knows."""

    code = "upstream_hung_up"


class BusyError(UpstreamError):
    """All connections that the gateway may hold to the provider are in use."""

    code = "upstream_busy"


class CircuitOpenError(UpstreamError):
    """Too many of the deployment's last calls failed, or it said that it has too much to do."""

    code = "upstream_circuit_open"

    def __init__(self, seconds: float, *, resting: bool) -> None:
        reason = "it asked to be left alone" if resting else "too many of its last calls failed"
        super().__init__(f"{reason}; for {seconds:.1f} s more it is")
        self.retry_after = str(max(1, math.ceil(seconds)))
        self.resting = resting


class HedgedError(UpstreamError):
    """Another deployment was asked too, and answered sooner."""

    code = "upstream_hedged"


class UpstreamTimeoutError(UpstreamError):
    """The provider took too long."""

    code = "upstream_timeout"


class InvalidAnswerError(UpstreamError):
    """The provider's answer is no chat completion."""

    code = "upstream_invalid_answer"


class StreamBrokenError(UpstreamError):
    """The provider's stream ended before its answer did."""

    code = "upstream_stream_broken"


class UpstreamStatusError(UpstreamError):
    """The provider answered with an error status."""

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.code = f"upstream_status_{status}"

    @classmethod
    def read(cls, status: int, body: bytes, retry_after: str | None = None) -> UpstreamStatusError:
        """From an error answer as it came; its message is taken if it has one in OpenAI's shape."""
        return cls(status, error_message(body), retry_after)


def error_message(body: bytes) -> str:
    """The provider's own words, shortened; empty if it has none."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:_MESSAGE_LIMIT].decode("utf-8", "replace").strip()
    return message_of(payload)


def message_of(payload: Any) -> str:
    """The message inside an error payload, wherever the provider's dialect puts it."""
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    message = error.get("message") if isinstance(error, dict) else error
    return message[:_MESSAGE_LIMIT] if isinstance(message, str) else ""


def for_caller(error: UpstreamError, use_case: str, provider: str) -> ApiError:
    """What a caller is told when no deployment could answer."""
    if isinstance(error, NotConfiguredError):
        text = f"This gateway has no provider '{provider}'. Ask the operator to add it to its configuration."
        return ApiError(502, text, "upstream_error", error.code)
    operator = f"if it lasts, ask the operator to look at provider '{provider}'"
    if isinstance(error, UpstreamStatusError):
        return _for_status(error, use_case, provider, operator)
    if isinstance(error, UpstreamTimeoutError):
        text = f"The model behind '{use_case}' did not answer in time. Retry, or ask for less; {operator}."
        return ApiError(504, text, "upstream_error", error.code)
    if isinstance(error, BusyError):
        text = f"The gateway is at its limit of calls to the model behind '{use_case}'. Retry in a moment."
        return ApiError(503, text, "overloaded_error", error.code, retry_after="1")
    if isinstance(error, CircuitOpenError) and error.resting:
        text = f"The model behind '{use_case}' is at its rate limit. Wait as retry-after says, then retry."
        return ApiError(429, text, "rate_limit_error", "upstream_rate_limited", None, error.retry_after)
    if isinstance(error, CircuitOpenError):
        text = f"The model behind '{use_case}' keeps failing. Retry in a moment; {operator}."
        return ApiError(503, text, "overloaded_error", error.code, retry_after=error.retry_after)
    if isinstance(error, ConnectError):
        text = f"The model behind '{use_case}' cannot be reached. Retry in a few seconds; {operator}."
        return ApiError(502, text, "upstream_error", error.code)
    if isinstance(error, HungUpError):
        text = f"The model behind '{use_case}' closed the connection without an answer. Retry; {operator}."
        return ApiError(502, text, "upstream_error", error.code)
    if isinstance(error, StreamBrokenError):
        text = f"The model behind '{use_case}' stopped in the middle of its answer. Retry; {operator}."
        return ApiError(502, text, "upstream_error", error.code)
    text = f"The model behind '{use_case}' sent an answer that cannot be read. Retry; {operator}."
    return ApiError(502, text, "upstream_error", error.code)


def _for_status(error: UpstreamStatusError, use_case: str, provider: str, operator: str) -> ApiError:
    status = error.status or 502
    if status in CALLERS_FAULT:
        words = error.message or "no reason given"
        text = f"The model behind '{use_case}' refused the request: {words}"
        return ApiError(status, text, "invalid_request_error", "upstream_refused")
    if status == 429:
        text = f"The model behind '{use_case}' is at its rate limit. Wait as retry-after says, then retry."
        return ApiError(429, text, "rate_limit_error", "upstream_rate_limited", None, error.retry_after)
    if status in (401, 403):
        text = (
            f"Provider '{provider}' refused the gateway's credentials; your own key is fine. "
            "Ask the operator to check that provider's api_key."
        )
        return ApiError(502, text, "upstream_error", "upstream_credentials")
    if status in (408, 504):
        text = f"The model behind '{use_case}' did not answer in time. Retry; {operator}."
        return ApiError(504, text, "upstream_error", "upstream_timeout")
    text = f"The model behind '{use_case}' failed (HTTP {status}). Retry in a few seconds; {operator}."
    return ApiError(502, text, "upstream_error", error.code, None, error.retry_after)


def internal(request_id: str) -> ApiError:
    """Our own fault."""
    text = f"The gateway failed on this request. Retry; if it lasts, report {request_id} to the operator."
    return ApiError(500, text, "server_error", "internal")


def too_large(limit: int) -> ApiError:
    """A body that is not read."""
    text = f"The body is over the limit of {limit} bytes. Send less, such as a shorter conversation."
    return ApiError(413, text, code="request_too_large")


def bad_key() -> ApiError:
    """The caller's key is missing, malformed, unknown or revoked: one answer for all."""
    text = (
        "No valid API key. Send 'Authorization: Bearer ma_live_...' (or 'x-api-key: ma_live_...') with a "
        "key that an operator made for your application."
    )
    return ApiError(401, text, "authentication_error", "invalid_api_key")


def unknown_model(name: str, allowed: Iterable[str]) -> ApiError:
    """The caller asked for something that is no use case of its key."""
    names = ", ".join(sorted(allowed)) or "none yet; ask the operator"
    name = name if len(name) <= _NAME_LIMIT else f"{name[:_NAME_LIMIT]}..."
    text = f"'{name}' is no use case that this key may call. Use one of: {names}."
    return ApiError(404, text, "invalid_request_error", "model_not_found", "model")
