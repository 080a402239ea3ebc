"""Where a call stands in a trace that began elsewhere: the W3C's ``traceparent`` header, read and written.

Spans are made of the interaction log by the sidecar; here only their names are given.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_HEADER = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


class Trace(NamedTuple):
    """One span: this call's."""

    trace_id: str  #: 32 hexadecimal digits
    span_id: str  #: 16
    parent_id: str | None  #: the caller's span
    flags: str

    def child(self) -> Trace:
        """A span within this one."""
        return Trace(self.trace_id, os.urandom(8).hex(), self.span_id, self.flags)

    @property
    def header(self) -> bytes:
        """The ``traceparent`` for whoever is asked next."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}".encode()


def trace_of(header: bytes | None, *, begin: bool) -> Trace | None:
    """The span of a call with that header. Without one a trace begins here, if any are wanted.

    >>> trace_of(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", begin=False).parent_id
    '00f067aa0ba902b7'
    """
    found = _HEADER.fullmatch(header) if header is not None else None
    if found is not None:
        trace_id, parent_id, flags = (part.decode() for part in found.groups())
        return Trace(trace_id, os.urandom(8).hex(), parent_id, flags)
    if begin:
        ids = os.urandom(24).hex()
        return Trace(ids[:32], ids[32:], None, "01")
    return None
