"""What the control process answers when it will not do what was asked: one sentence, a status, a code.

Raised anywhere below the HTTP edge; the edge turns it into JSON or into a page.
"""

from __future__ import annotations

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class Refusal(Exception):  # noqa: N818  # a refusal is an answer, not a fault
    """A request that is refused for a reason that its sender can read and act on."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        """``code`` is for programs, ``message`` is a sentence for people."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        """The family of the error, in the words of OpenAI's API."""
        return error_type(self.status)


def error_type(status: int) -> str:
    """The family that a status belongs to."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def not_found(what: str, name: str) -> Refusal:
    """There is no such thing."""
    return Refusal(404, "not_found", f"There is no {what} {name!r}.")
