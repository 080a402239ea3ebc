"""Which adapter serves which kind of provider: a plain table."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.provider import Provider
from gateway.providers.openai_compatible import OpenAiCompatible
from gateway.settings import ProviderConfig

#: Kinds whose servers speak OpenAI's chat completions themselves.
OPENAI_SPEAKING = frozenset(
    {"openai", "openai_compatible", "openrouter", "google", "vllm", "ollama", "llamacpp", "transformers"}
)


def build_providers(configs: Iterable[ProviderConfig]) -> dict[str, Provider]:
    """An adapter for each configured provider. An unknown kind stops the start."""
    return {config.name: _build(config) for config in configs}


def _build(config: ProviderConfig) -> Provider:
    if config.kind not in OPENAI_SPEAKING:
        known = ", ".join(sorted(OPENAI_SPEAKING))
        raise ValueError(f"provider {config.name!r} has the unknown kind {config.kind!r}; known: {known}")
    return OpenAiCompatible(config)
