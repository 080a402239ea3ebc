"""The little of ASGI that the gateway needs: headers, a body under a limit, JSON answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

from gateway.errors import ApiError, ClientGoneError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

_JSON = (b"content-type", b"application/json")
#: A request that ends sooner is not watched: watching costs more than the few answers it would save.
_WATCH_AFTER_SECONDS = 0.05
_DRAIN_SECONDS = 2.0


async def _drain(receive: Receive, headers: dict[bytes, bytes]) -> None:
    """Read on for a moment: a client that is still sending would not see our refusal."""
    if b"expect" in headers:
        return  # it has sent nothing yet, and asking for more would bring it all
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    """The whole body, refused as soon as it is known to be over the limit."""
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        await _drain(receive, headers)
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request":
        if len(body) > limit:
            raise _too_large(limit)
        return body
    pieces, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body", False):
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            await _drain(receive, {})
            raise _too_large(limit)
    if message["type"] != "http.request":
        raise ClientGoneError("the request was not whole")
    return b"".join(pieces)


def _too_large(limit: int) -> ApiError:
    text = f"The body is over the limit of {limit} bytes. Send less, such as a shorter conversation."
    return ApiError(413, text, code="request_too_large")


async def send_json(
    send: Send, status: int, body: bytes, headers: tuple[Header, ...] | list[Header] = ()
) -> None:
    """A whole answer."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, headers: tuple[Header, ...] | list[Header] = ()) -> None:
    """An error in OpenAI's shape."""
    extra = list(headers)
    if error.retry_after:
        extra.append((b"retry-after", error.retry_after.encode("latin-1")))
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    if error.status == 413:
        extra.append((b"connection", b"close"))  # the rest of the body is not read
    await send_json(send, error.status, error.body(), extra)


class ClientWatch:
    """Cancels the request it surrounds when its client goes away; ``gone`` says that it was so."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.gone = False
        self.answered = False  #: set before the last piece is sent: leaving after that is no cancellation

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = loop.call_later(_WATCH_AFTER_SECONDS, self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.answered:
            self.gone = True
            self._task.cancel()
