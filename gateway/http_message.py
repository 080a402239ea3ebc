"""A request as a handler gets it, and the answer that it gives. Knows no path and no key."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Protocol

Header = tuple[bytes, bytes]

STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class Request:
    """One request, as far as it has been read."""

    __slots__ = ("admitted", "body", "headers", "method", "path", "query")

    def __init__(self, method: bytes, target: bytes, headers: dict[bytes, bytes]) -> None:
        self.method = method
        if not target.startswith(b"/"):
            target = _origin_form(target)
        path, _, query = target.partition(b"?")
        self.path = path.decode("latin-1")
        self.query = query
        self.headers = headers  #: names in lower case
        self.body = b""
        self.admitted: Any = None  #: what the application found when it saw the head


def _origin_form(target: bytes) -> bytes:
    """Without scheme and host, which proxies are sent; anything else as it is."""
    authority = _AUTHORITY.match(target)
    if authority is None:
        return target
    rest = target[authority.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


class Wire(Protocol):
    """What an answer is written to."""

    @property
    def date(self) -> bytes:
        """The value of the Date header."""
        ...

    @property
    def write_paused(self) -> bool:
        """Whether the client takes less than it is sent."""
        ...

    def write(self, data: bytes) -> None:
        """Send more of the answer under way."""
        ...

    def end(self, data: bytes, *, keep: bool) -> None:
        """Send the end of an answer."""
        ...

    async def drain(self) -> None:
        """Until the client takes more of the answer."""
        ...

    def abort(self) -> None:
        """Drop the connection."""
        ...


class Reply:
    """The answer to one request: sent whole, or started, written and finished."""

    __slots__ = ("_chunked", "_head", "_head_only", "_keep", "_wire", "finished", "gone", "started")

    def __init__(self, wire: Wire, *, keep: bool, head_only: bool, chunked: bool) -> None:
        self._wire = wire
        self._keep = keep
        self._head_only = head_only
        self._chunked = chunked
        self._head = b""
        self.started = False
        self.finished = False
        self.gone = False  #: the client went away before the answer was whole

    def send(self, status: int, headers: list[Header], body: bytes) -> None:
        """A whole answer."""
        head = self._make_head(status, headers) + b"content-length: %d\r\n\r\n" % len(body)
        self.started = True
        self._end(head if self._head_only else head + body)

    def start(self, status: int, headers: list[Header]) -> None:
        """The head of an answer in pieces. It leaves with the first piece."""
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        self._keep = self._keep and self._chunked
        self._head = self._make_head(status, headers) + framing
        self.started = True

    def write(self, data: bytes) -> None:
        """A piece. May be empty: then whatever waits is sent."""
        if self._head_only:
            return
        piece = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data
        if self._head:
            piece, self._head = self._head + piece, b""
        if piece:
            self._wire.write(piece)

    def finish(self, data: bytes = b"") -> None:
        """The last piece, and the end."""
        last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        head, self._head = self._head, b""
        self._end(head if self._head_only else head + (last if self._chunked else data))

    def be_last(self) -> None:
        """No request is read after this one: say so if the head has not left, and close in any case."""
        self._keep = False

    def break_off(self) -> None:
        """Close the connection in the middle of an answer that cannot be finished."""
        self.finished = True
        self._wire.abort()

    @property
    def stalls(self) -> bool:
        """Whether the client takes less than it is sent: wait for :meth:`drain` before more."""
        return self._wire.write_paused

    async def drain(self) -> None:
        """Until the client takes more."""
        await self._wire.drain()

    def _end(self, data: bytes) -> None:
        if not self.finished:
            self.finished = True
            self._wire.end(data, keep=self._keep)

    def _make_head(self, status: int, headers: list[Header]) -> bytes:
        keep = b"" if self._keep else b"connection: close\r\n"
        lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
            raise ValueError("a header's value holds a line break")
        return b"%b%bdate: %b\r\n%b" % (STATUS_LINES[status], lines, self._wire.date, keep)
