"""Providers that speak OpenAI's chat completions: OpenAI itself, OpenRouter, vLLM, Ollama, llama.cpp.

Adds the key and whatever else the provider's servers want to see in a header; all the rest is the wire.
"""

from __future__ import annotations

from gateway.openai_wire import OpenAiWire
from gateway.settings import ProviderConfig
from gateway.upstream import Origin


class OpenAiCompatible(OpenAiWire):
    """One provider, reached by one pool of connections."""

    def __init__(self, config: ProviderConfig) -> None:
        self.name = config.name
        super().__init__(config, Origin.parse(config.base_url), _headers(config))

    async def start(self) -> None:
        """See ``gateway.provider.Provider``: connections are made with the first calls."""

    async def finish(self) -> None:
        """See ``gateway.provider.Provider``: connections are gone when they are closed."""


def _headers(config: ProviderConfig) -> dict[str, str]:
    key = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    return {**key, **config.headers}
