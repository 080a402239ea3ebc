"""Providers that speak OpenAI's chat completions: OpenAI itself, OpenRouter, vLLM, Ollama, llama.cpp.

Passes requests and answers through as they are; translates errors only.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from gateway.errors import (
    InvalidAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamStatusError,
    error_message,
    message_of,
)
from gateway.provider import Answer
from gateway.settings import ProviderConfig
from gateway.sse import EventReader
from gateway.upstream import Connection, Origin, Pool

#: A single event longer than this is no chat completion chunk.
_EVENT_LIMIT = 4 * 1024 * 1024
_DONE = b"[DONE]"


class OpenAiCompatible:
    """One provider, reached by one pool of connections."""

    def __init__(self, config: ProviderConfig) -> None:
        self.name = config.name
        self._config = config
        origin = Origin.parse(config.base_url)
        self._pool = Pool(
            origin,
            connect_seconds=config.connect_seconds,
            max_connections=config.max_connections,
            max_answer_bytes=config.max_answer_bytes,
            tls=ssl.create_default_context(cafile=config.ca_file) if config.ca_file else None,
        )
        self._head = _request_head(origin, config.api_key)

    async def complete(self, request: dict[str, Any]) -> Answer:
        """See ``gateway.provider.Provider``."""
        started = self._pool.loop.time()
        connection, body = await self._pool.fetch(self._request(request), self._config.answer_seconds)
        connection.done()
        waited = connection.finished_at - started
        _check_status(connection, body)
        return Answer(_read_completion(body), waited)

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """See ``gateway.provider.Provider``."""
        loop = self._pool.loop
        first_by = loop.time() + self._config.first_token_seconds
        connection = await self._pool.open(self._request(request), self._config.first_token_seconds)
        try:
            await _check_stream_head(connection, first_by)
            reader = EventReader()
            finished = False
            deadline = first_by
            size = 0
            while data := await connection.receive_some(deadline):
                payloads = reader.feed(data)
                done = _DONE in payloads
                chunks = [_read_chunk(payload) for payload in (_until_done(payloads) if done else payloads)]
                finished = finished or any(_has_finish(chunk) for chunk in chunks)
                if chunks:
                    yield chunks
                if done:
                    return
                size += len(data)
                if reader.pending > _EVENT_LIMIT or size > self._config.max_answer_bytes:
                    raise InvalidAnswerError("the stream, or an event of it, is too long")
                deadline = loop.time() + self._config.idle_seconds
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

    def _request(self, request: dict[str, Any]) -> bytes:
        try:
            body = orjson.dumps(request)
        except TypeError as error:  # a number beyond 64 bits, in a parameter
            raise InvalidAnswerError(f"the request cannot be written: {error}") from None
        return b"%scontent-length: %d\r\n\r\n%s" % (self._head, len(body), body)


def _request_head(origin: Origin, api_key: str | None) -> bytes:
    lines = [
        f"POST {origin.path}/chat/completions HTTP/1.1",
        f"host: {origin.host_header}",
        "content-type: application/json",
        "accept: application/json, text/event-stream",
        "accept-encoding: identity",
        "user-agent: meta-agent-gateway",
    ]
    if api_key:
        lines.append(f"authorization: Bearer {api_key}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("base_url and api_key of a provider must not hold line breaks")
    return "\r\n".join(lines).encode() + b"\r\n"


def _check_status(connection: Connection, body: bytes) -> None:
    if connection.status != 200:
        retry_after = connection.headers.get(b"retry-after", b"").decode("latin-1") or None
        raise UpstreamStatusError(connection.status, error_message(body), retry_after)
    encoding = connection.headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        raise InvalidAnswerError(f"content-encoding {encoding!r} was not asked for")


async def _check_stream_head(connection: Connection, deadline: float) -> None:
    is_stream = connection.headers.get(b"content-type", b"").startswith(b"text/event-stream")
    if connection.status == 200 and is_stream:
        _check_status(connection, b"")
        return
    body = b""
    with contextlib.suppress(UpstreamError):  # the status says enough
        while len(body) < _EVENT_LIMIT and (data := await connection.receive_some(deadline)):
            body += data
    _check_status(connection, body)
    raise InvalidAnswerError("a stream was asked for, and something else came")


def _read_completion(body: bytes) -> dict[str, Any]:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidAnswerError(f"not JSON: {error}") from None
    answer: dict[str, Any] = payload if isinstance(payload, dict) else {}
    choices = answer.get("choices")
    if not choices or not _are_choices(choices):
        # Some providers answer errors with status 200.
        raise InvalidAnswerError(message_of(payload) or "no list of choices in the answer")
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
    if not _are_choices(chunk["choices"]):
        raise InvalidAnswerError("an event of the stream has no list of choices")
    return chunk


def _are_choices(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(choice, dict) for choice in value)


def _until_done(payloads: list[bytes]) -> list[bytes]:
    return payloads[: payloads.index(_DONE)]


def _has_finish(chunk: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in chunk["choices"])
