"""OpenAI's wire as a client speaks it: chat completions, plain and in pieces, and embeddings over one pool.

Passes requests and answers through as they are; translates errors only. Knows no provider: the adapters
say where the pool leads, which headers go along and what else an error answer may mean.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import orjson

from gateway.errors import (
    InvalidAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
    error_message,
    message_of,
)
from gateway.provider import DEFAULT_TERMS, Answer, Terms
from gateway.settings import ProviderConfig
from gateway.sse import EventReader
from gateway.upstream import Connection, Origin, Pool

#: A single event longer than this is no chat completion chunk.
_EVENT_LIMIT = 4 * 1024 * 1024
_DONE = b"[DONE]"
_RETRY_AFTER_LIMIT = 40

#: What an error answer means: its headers (names in lower case), status and body.
ErrorReader = Callable[[Mapping[bytes, bytes], int, bytes], UpstreamError]


def status_error(headers: Mapping[bytes, bytes], status: int, body: bytes) -> UpstreamError:
    """What an error answer means if nothing else is known of it: its status."""
    return UpstreamStatusError(status, error_message(body), _retry_after(headers))


def _retry_after(headers: Mapping[bytes, bytes]) -> str | None:
    """What clients are told too: seconds or a date, and nothing longer than those."""
    value = headers.get(b"retry-after", b"")
    return value.decode("latin-1") if 0 < len(value) <= _RETRY_AFTER_LIMIT else None


class OpenAiWire:
    """One server that speaks it, reached by one pool of connections."""

    def __init__(
        self,
        config: ProviderConfig,
        origin: Origin,
        headers: Mapping[str, str],
        read_error: ErrorReader = status_error,
    ) -> None:
        self._config = config
        self._read_error = read_error
        self._pool = Pool(
            origin,
            connect_seconds=config.connect_seconds,
            max_connections=config.max_connections,
            max_answer_bytes=config.max_answer_bytes,
            tls=ssl.create_default_context(cafile=config.ca_file) if config.ca_file and origin.tls else None,
        )
        self._chat_head = _request_head(origin, "/chat/completions", headers)
        self._embeddings_head = _request_head(origin, "/embeddings", headers)

    async def complete(self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS) -> Answer:
        """See ``gateway.provider.Provider``."""
        body, waited = await self._fetch(self._chat_head, request, terms)
        return Answer(_read_completion(body), waited)

    async def embed(self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS) -> Answer:
        """See ``gateway.provider.Provider``."""
        body, waited = await self._fetch(self._embeddings_head, request, terms)
        return Answer(_read_embeddings(body), waited)

    async def stream(
        self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """See ``gateway.provider.Provider``."""
        loop = self._pool.loop
        patience = self._seconds(terms, terms.first_token_seconds or self._config.first_token_seconds)
        idle_seconds = terms.idle_seconds or self._config.idle_seconds
        first_by = loop.time() + patience
        connection = await self._pool.open(_request(self._chat_head, request, terms), patience)
        try:
            await self._check_stream_head(connection, first_by)
            reader = EventReader()
            finished = False
            deadline = first_by
            size = 0
            while data := await connection.receive_some(deadline):
                payloads = reader.feed(data)
                done = _DONE in payloads
                chunks = [_read_chunk(payload) for payload in (_until_done(payloads) if done else payloads)]
                finished = finished or _has_finish(chunks)
                if chunks:
                    yield chunks
                    deadline = loop.time() + self._seconds(terms, idle_seconds)  # comments are no pieces
                if done:
                    return
                size += len(data)
                if reader.pending > _EVENT_LIMIT or size > self._config.max_answer_bytes:
                    raise InvalidAnswerError("the stream, or an event of it, is too long")
            if not finished:
                raise StreamBrokenError("the stream ended without an end")
        except BaseException:  # also when our caller went away: the provider should stop working
            connection.abort()
            raise
        finally:
            connection.done()

    def close(self) -> None:
        """See ``gateway.provider.Provider``."""
        self._pool.close()

    async def _fetch(self, head: bytes, request: dict[str, Any], terms: Terms) -> tuple[bytes, float]:
        started = time.perf_counter()
        seconds = self._seconds(terms, self._config.answer_seconds)
        connection, body = await self._pool.fetch(_request(head, request, terms), seconds)
        connection.done()
        waited = connection.finished_at - started
        self._check_status(connection, body)
        return body, waited

    def _seconds(self, terms: Terms, seconds: float) -> float:
        """How long to wait, given the moment by which the whole answer must be there."""
        if terms.deadline is None:
            return seconds
        left = terms.deadline - self._pool.loop.time()
        if left <= 0:
            raise UpstreamTimeoutError("no time is left for this call")
        return min(seconds, left)

    def _check_status(self, connection: Connection, body: bytes) -> None:
        if connection.status != 200:
            raise self._read_error(connection.headers, connection.status, body)
        encoding = connection.headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            raise InvalidAnswerError(f"content-encoding {encoding!r} was not asked for")

    async def _check_stream_head(self, connection: Connection, deadline: float) -> None:
        is_stream = connection.headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if connection.status == 200 and is_stream:
            self._check_status(connection, b"")
            return
        body = b""
        with contextlib.suppress(UpstreamError):  # the status says enough
            while len(body) < _EVENT_LIMIT and (data := await connection.receive_some(deadline)):
                body += data
        self._check_status(connection, body)
        raise InvalidAnswerError("a stream was asked for, and something else came")


def _request_head(origin: Origin, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"POST {origin.path}{path} HTTP/1.1",
        f"host: {origin.host_header}",
        "content-type: application/json",
        "accept: application/json, text/event-stream",
        "accept-encoding: identity",
        "user-agent: meta-agent-gateway",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("base_url, headers and api_key of a provider must not hold line breaks")
    return "\r\n".join(lines).encode() + b"\r\n"


def _request(head: bytes, request: dict[str, Any], terms: Terms) -> bytes:
    try:
        body = orjson.dumps(request)
    except TypeError as error:  # a number beyond 64 bits, in a parameter
        raise InvalidAnswerError(f"the request cannot be written: {error}") from None
    if terms.traceparent:
        head = b"%straceparent: %s\r\n" % (head, terms.traceparent)
    return b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidAnswerError(f"not JSON: {error}") from None
    return payload if isinstance(payload, dict) else {}


def _read_completion(body: bytes) -> dict[str, Any]:
    answer = _read_object(body)
    choices = answer.get("choices")
    if not choices or not _are_objects(choices):
        # Some providers answer errors with status 200.
        raise InvalidAnswerError(message_of(answer) or "no list of choices in the answer")
    return answer


def _read_embeddings(body: bytes) -> dict[str, Any]:
    answer = _read_object(body)
    if not _are_objects(answer.get("data")):
        raise InvalidAnswerError(message_of(answer) or "no list of embeddings in the answer")
    return answer


def _read_chunk(payload: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidAnswerError(f"an event of the stream is not JSON: {error}") from None
    if not isinstance(chunk, dict):
        raise InvalidAnswerError("an event of the stream is not an object")
    if chunk.get("error"):
        raise StreamBrokenError(f"the provider reported: {message_of(chunk) or 'an error'}")
    if chunk.get("choices") is None:
        chunk["choices"] = []
    if not _are_objects(chunk["choices"]):
        raise InvalidAnswerError("an event of the stream has no list of choices")
    return chunk


def _are_objects(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if len(value) == 1:  # nearly always, and for each chunk of a stream
        return isinstance(value[0], dict)
    return all(isinstance(each, dict) for each in value)


def _until_done(payloads: list[bytes]) -> list[bytes]:
    return payloads[: payloads.index(_DONE)]


def _has_finish(chunks: list[dict[str, Any]]) -> bool:
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice.get("finish_reason"):
                return True
    return False
