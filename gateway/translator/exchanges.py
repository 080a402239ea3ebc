"""What happens on the wire to a provider, seen beneath the library: status, headers, how it broke.

The library folds what it sees into a handful of exceptions and loses the true status on the way; here it
is read from the wire. Each provider has one transport of its own, with its own authorities, limits and
waits. The library may not follow redirects with somebody's key, nor repeat a call on its own.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import cast

import httpx

from gateway.translator.handover import BROKEN, INVALID, TIMEOUT, UNREACHABLE, Upstream

_ERROR_BYTES = 64 * 1024
#: Streams of which the library cannot tell that they stopped too early: what their last event holds.
_ENDINGS = {":streamGenerateContent": (b'"finishReason"', b'"blockReason"')}
_current: ContextVar[Exchange] = ContextVar("exchange")

MakeTransport = Callable[[ssl.SSLContext | None], httpx.AsyncBaseTransport]


class Exchange:
    """What one call saw of its provider."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.status = 0  #: 0: no answer was heard
        self.headers: Mapping[str, str] = {}
        self.error_body = b""
        self.fault: str | None = None
        self._endings: tuple[bytes, ...] = ()
        self._bodies: list[_Body] = []

    @property
    def is_stream(self) -> bool:
        """Whether the provider answers in events."""
        return "stream" in self.headers.get("content-type", "")

    @property
    def has_ended(self) -> bool:
        """Whether the last event was seen, as far as that can be known from the bytes."""
        return not self._endings or any(body.has_ended for body in self._bodies)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """What the library sends in here belongs to this call."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def begin(self, path: str) -> None:
        """A request is sent."""
        self.status, self.headers, self.fault, self.error_body = 0, {}, None, b""
        self._endings = next((endings for part, endings in _ENDINGS.items() if part in path), ())

    def answered(self, response: httpx.Response) -> httpx.Response:
        """The head of the answer is here."""
        self.status = response.status_code
        self.headers = response.headers
        if 300 <= response.status_code < 400:
            response.headers.pop("location", None)  # nobody follows it
        body = _Body(self, cast(httpx.AsyncByteStream, response.stream), self._endings)
        self._bodies.append(body)
        return httpx.Response(response.status_code, headers=response.headers, stream=body)

    async def close(self) -> None:
        """Let go of the wire: a provider that is still sending should stop."""
        for body in self._bodies:
            with contextlib.suppress(httpx.HTTPError):
                await body.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's body, watched."""

    def __init__(self, exchange: Exchange, stream: httpx.AsyncByteStream, endings: tuple[bytes, ...]) -> None:
        self._exchange = exchange
        self._stream = stream
        self._endings = endings
        self._tail = b""
        self._size = 0
        self.has_ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._stream:
                self._count(data)
                yield data
        except httpx.TimeoutException:
            self._exchange.fault = TIMEOUT
            raise
        except httpx.TransportError as error:
            self._exchange.fault = self._exchange.fault or BROKEN
            raise httpx.ReadError(str(error)) from None

    def _count(self, data: bytes) -> None:
        exchange = self._exchange
        self._size += len(data)
        if exchange.status >= 300 and len(exchange.error_body) < _ERROR_BYTES:
            exchange.error_body += data
        if self._size > exchange.upstream.max_answer_bytes:
            exchange.fault = INVALID
            raise httpx.ReadError("the answer is too long")
        if self._endings and not self.has_ended:
            data = self._tail + data
            self.has_ended = any(ending in data for ending in self._endings)
            self._tail = data[-32:]  # the network may cut anywhere

    async def aclose(self) -> None:
        await self._stream.aclose()


class Wires(httpx.AsyncBaseTransport):
    """The one transport that the library gets: it leads each call to its provider's own."""

    def __init__(self, upstreams: Mapping[str, Upstream], make: MakeTransport) -> None:
        self._transports = {name: make(_authorities(upstream)) for name, upstream in upstreams.items()}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx."""
        exchange = _current.get(None)
        if exchange is None:
            raise httpx.UnsupportedProtocol("the library calls somebody on its own account")
        upstream = exchange.upstream
        transport = self._transports[upstream.name]
        limits = {"connect": upstream.connect_seconds, "read": upstream.read_seconds}
        request.extensions = {**request.extensions, "timeout": {**limits, "write": None, "pool": None}}
        if request.method != "POST":  # a picture that a message names; no word of the provider
            return await transport.handle_async_request(request)
        request.headers["accept-encoding"] = "identity"
        exchange.begin(request.url.path)
        return exchange.answered(await _send(transport, request, exchange))

    async def aclose(self) -> None:
        """The library closes its clients when it likes; the wires last as long as the process."""


async def _send(
    transport: httpx.AsyncBaseTransport, request: httpx.Request, exchange: Exchange
) -> httpx.Response:
    try:
        return await transport.handle_async_request(request)
    except httpx.ConnectTimeout as error:
        exchange.fault = UNREACHABLE
        raise httpx.ReadError(str(error)) from None
    except httpx.TimeoutException:
        exchange.fault = TIMEOUT
        raise
    except httpx.TransportError as error:
        # The library would send a request again after some of these.
        exchange.fault = UNREACHABLE
        raise httpx.ReadError(str(error)) from None


def _authorities(upstream: Upstream) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=upstream.ca_file) if upstream.ca_file else None
