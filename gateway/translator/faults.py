"""What a failed call is answered with: the provider's own status and words, or what befell the wire."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.errors import error_message
from gateway.translator.exchanges import Exchange
from gateway.translator.handover import BROKEN, INVALID, TIMEOUT, UNREACHABLE, redacted

_WORDS = {
    UNREACHABLE: "the provider cannot be reached",
    TIMEOUT: "the provider did not answer in time",
    BROKEN: "the provider's answer stopped in the middle",
    INVALID: "the provider's answer cannot be read",
}
_MESSAGE_LIMIT = 500
_CLASS_NAMES = re.compile(r"(litellm\.)?\w+(Error|Exception)(: | - )")


@dataclass(frozen=True, slots=True)
class Fault:
    """An error answer to be."""

    status: int
    message: str
    fault: str | None = None
    retry_after: str | None = None

    @classmethod
    def of_wire(cls, fault: str) -> Fault:
        """The provider sent no error; this happened instead."""
        return cls(504 if fault == TIMEOUT else 502, _WORDS[fault], fault)


def fault_of(error: BaseException, exchange: Exchange, secrets: Sequence[str]) -> Fault:
    """What to answer. The wire is believed before the library's reading of it."""
    if exchange.status >= 300:
        words = redacted(error_message(exchange.error_body), secrets)
        return Fault(exchange.status, words, None, exchange.headers.get("retry-after"))
    if exchange.fault:
        return Fault.of_wire(exchange.fault)
    if exchange.status:  # it began well; how it went wrong the library words as it likes
        return Fault.of_wire(BROKEN if exchange.is_stream else INVALID)
    return _before_the_wire(error, secrets)


def _before_the_wire(error: BaseException, secrets: Sequence[str]) -> Fault:
    """The library did not even call the provider: mostly a request that it cannot translate.

    That must not look like the provider's failure: whoever sent the request would otherwise take the
    provider out of service for all others.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return Fault(status, _first_line(redacted(str(error), secrets)))
    causes = list(_causes(error))
    if any(isinstance(cause, ImportError) for cause in causes):
        return Fault(500, "the translator lacks a package that this provider needs")
    if any("credential" in str(cause).lower() for cause in causes):
        return Fault(401, "the provider's credentials are missing or unusable")
    return Fault(422, "the request cannot be translated for this provider")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(text: str) -> str:
    """The rest may be a traceback; what comes before it is the library's name for the error."""
    return _CLASS_NAMES.sub("", text.strip().split("\n", 1)[0])[:_MESSAGE_LIMIT]
