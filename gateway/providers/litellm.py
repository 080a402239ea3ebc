"""Providers that do not speak OpenAI's wire: Anthropic, and whatever else litellm can reach.

litellm itself runs in the translator's process; here is the wire to it. Loads nothing of litellm.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from gateway.errors import (
    ConnectError,
    InvalidAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamTimeoutError,
    error_message,
)
from gateway.openai_wire import OpenAiWire, status_error
from gateway.provider import DEFAULT_TERMS, Answer, Terms
from gateway.settings import ProviderConfig
from gateway.translator.handover import (
    BROKEN,
    FAULT_HEADER,
    INVALID,
    PROVIDER_HEADER,
    TIMEOUT,
    UNREACHABLE,
)
from gateway.translator_process import TranslatorProcess
from gateway.upstream import Origin

_FAULT_HEADER = FAULT_HEADER.encode()
_FAULTS: dict[bytes, type[UpstreamError]] = {
    UNREACHABLE.encode(): ConnectError,
    TIMEOUT.encode(): UpstreamTimeoutError,
    BROKEN.encode(): StreamBrokenError,
    INVALID.encode(): InvalidAnswerError,
}


class Litellm:
    """One provider behind the translator."""

    def __init__(self, config: ProviderConfig, translator: TranslatorProcess) -> None:
        self.name = config.name
        self._translator = translator
        self._connect_seconds = config.connect_seconds
        origin = Origin("translator", 80, False, "/v1", translator.socket)
        self._wire = OpenAiWire(config, origin, {PROVIDER_HEADER: config.name}, _read_error)

    async def start(self) -> None:
        """See ``gateway.provider.Provider``: the process starts, and is not waited for."""
        await self._translator.start()

    async def complete(self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS) -> Answer:
        """See ``gateway.provider.Provider``."""
        await self._translator.ready(self._connect_seconds, terms.deadline)
        return await self._wire.complete(request, terms)

    async def embed(self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS) -> Answer:
        """See ``gateway.provider.Provider``."""
        await self._translator.ready(self._connect_seconds, terms.deadline)
        return await self._wire.embed(request, terms)

    async def stream(
        self, request: dict[str, Any], terms: Terms = DEFAULT_TERMS
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """See ``gateway.provider.Provider``."""
        await self._translator.ready(self._connect_seconds, terms.deadline)
        async with contextlib.aclosing(self._wire.stream(request, terms)) as chunks:
            async for arrived in chunks:
                yield arrived

    def close(self) -> None:
        """See ``gateway.provider.Provider``; whoever closes one provider closes all."""
        self._wire.close()
        self._translator.close()

    async def finish(self) -> None:
        """See ``gateway.provider.Provider``."""
        await self._translator.finish()


def _read_error(headers: Mapping[bytes, bytes], status: int, body: bytes) -> UpstreamError:
    fault = _FAULTS.get(headers.get(_FAULT_HEADER, b""))
    return fault(error_message(body)) if fault else status_error(headers, status, body)
