"""The catalogue of a configured provider: ``GET {base_url}/models`` in OpenAI's shape.

Reads what OpenRouter, vLLM and OpenAI add to it. Everything in an answer is untrusted: a value
that makes no sense is unknown, and an answer that makes no sense is an error with a sentence.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from pipelines.context import ProviderAccess
from pipelines.discovery.source import (
    Listing,
    SourceError,
    lifecycle_at,
    read_moment,
    read_name,
    read_payload,
    read_price,
    read_tokens,
)
from storage import clock

_WORTH_A_RETRY = frozenset({429, 502, 503, 504})
_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_LARGEST_ANSWER = 32 * 1024 * 1024
#: What OpenRouter's parameters and modalities are called here (the price map's words).
_PARAMETERS = {
    "tools": "function_calling",
    "tool_choice": "tool_choice",
    "structured_outputs": "response_schema",
    "reasoning": "reasoning",
}
_MODALITIES = {"image": "vision", "file": "pdf_input", "audio": "audio_input", "video": "video_input"}


class _RefusalError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


@dataclass(frozen=True)
class OpenAiCompatible:
    """One configured provider as a source."""

    provider: ProviderAccess
    attempts: int = 3
    timeout_seconds: float = 30.0  #: for the whole listing, retries included

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.provider.name

    @property
    def kind(self) -> str:
        """The provider's kind."""
        return self.provider.kind

    async def fetch(self) -> list[Listing]:
        """The models that the provider lists now."""
        try:
            async with asyncio.timeout(self.timeout_seconds):
                body = await self._get()
        except TimeoutError:
            raise SourceError(
                f"{self.name} did not list its models within {self.timeout_seconds:g} seconds"
            ) from None
        return read_models(self.name, body, clock.now())

    async def _get(self) -> bytes:
        key = self.provider.api_key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # No proxy from the environment: the catalogue is asked the same way as the models are called.
        async with httpx.AsyncClient(headers=headers, timeout=10.0, trust_env=False) as client:
            for attempt in range(1, self.attempts + 1):
                try:
                    return await self._attempt(client)
                except _RefusalError as refusal:
                    await self._pause(refusal, attempt)
        raise SourceError(f"{self.name} was not asked: attempts must be at least 1")

    async def _pause(self, refusal: _RefusalError, attempt: int) -> None:
        """Wait before the next attempt, as long as the provider asks for, or give up."""
        if attempt == self.attempts:
            raise SourceError(f"{self.name} {refusal}, {attempt} times in a row") from refusal
        wanted = refusal.retry_after
        if wanted is not None and wanted > _LONGEST_PAUSE_SECONDS:
            raise SourceError(f"{self.name} {refusal} and asks to wait {wanted:g} seconds") from refusal
        await asyncio.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1) if wanted is None else wanted)

    async def _attempt(self, client: httpx.AsyncClient) -> bytes:
        try:
            async with client.stream("GET", f"{self.provider.base_url.rstrip('/')}/models") as response:
                self._check(response)
                return await self._read(response)
        except httpx.TimeoutException as error:
            raise _RefusalError("did not answer in time") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _RefusalError(f"cannot be reached ({error or type(error).__name__})") from error
        except httpx.InvalidURL as error:
            raise SourceError(f"the base_url of {self.name} is no URL: {error}") from error

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in _WORTH_A_RETRY:
            raise _RefusalError(f"answered HTTP {status}", _seconds(response.headers.get("retry-after")))
        if status in (401, 403):
            raise SourceError(f"{self.name} refused our credentials (HTTP {status}); check its api_key")
        if status != 200:
            raise SourceError(f"{self.name} answered HTTP {status} when asked for its models")

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > _LARGEST_ANSWER:
                raise SourceError(f"{self.name} lists more than {_LARGEST_ANSWER >> 20} MiB of models")
        return bytes(body)


def _seconds(header: str | None) -> float | None:
    """A ``retry-after`` in seconds; the form with a date is rare enough to fall back on our own pause."""
    return float(header) if header and header.isascii() and header.isdigit() else None


def read_models(provider: str, body: bytes, now: datetime) -> list[Listing]:
    """The listings in an answer of ``GET /models``."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{provider} lists its models in something that is not JSON") from error
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise SourceError(f"{provider} lists its models in a shape without a list named 'data'")
    listings = [_listing(provider, entry, now) for entry in entries if isinstance(entry, Mapping)]
    found = [listing for listing in listings if listing is not None]
    if entries and not found:
        raise SourceError(f"{provider} lists {len(entries)} entries, and none of them has an id")
    return found


def _listing(provider: str, entry: Mapping[str, Any], now: datetime) -> Listing | None:
    model = read_name(entry.get("id"))
    if model is None:
        return None
    pricing, top = _object(entry, "pricing"), _object(entry, "top_provider")
    retires_at = read_moment(entry.get("shutdown_date")) or read_moment(entry.get("expiration_date"))
    return Listing(
        external_id=model,
        provider=provider,
        model=model,
        reachable=True,
        price_input=read_price(pricing.get("prompt")),
        price_output=read_price(pricing.get("completion")),
        context_tokens=read_tokens(entry.get("context_length")) or read_tokens(entry.get("max_model_len")),
        output_tokens=read_tokens(top.get("max_completion_tokens")),
        capabilities=_capabilities(entry),
        lifecycle=lifecycle_at(now, retires_at),
        retires_at=retires_at,
        payload=read_payload(entry),
    )


def _capabilities(entry: Mapping[str, Any]) -> tuple[str, ...]:
    inputs = _object(entry, "architecture").get("input_modalities")
    named = {_PARAMETERS.get(each) for each in _words(entry.get("supported_parameters"))}
    named |= {_MODALITIES.get(each) for each in _words(inputs)}
    # Part of the wire format that these servers speak.
    return tuple(sorted({each for each in named if each} | {"streaming"}))


def _object(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, Mapping) else {}


def _words(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
