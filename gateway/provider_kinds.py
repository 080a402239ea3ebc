"""Which adapter serves which kind of provider: a plain table."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.provider import Provider
from gateway.providers.litellm import Litellm
from gateway.providers.openai_compatible import OpenAiCompatible
from gateway.settings import ProviderConfig
from gateway.translator_process import TranslatorProcess

#: Kinds whose servers speak OpenAI's chat completions themselves.
OPENAI_SPEAKING = frozenset(
    {"openai", "openai_compatible", "openrouter", "google", "vllm", "ollama", "llamacpp", "transformers"}
)
#: Kinds whose servers are reached through the translator; ``litellm`` takes the library's own model names.
TRANSLATED = frozenset({"anthropic", "litellm"})


def build_providers(configs: Iterable[ProviderConfig]) -> dict[str, Provider]:
    """An adapter for each configured provider. An unknown kind stops the start."""
    configs = tuple(configs)
    for config in configs:
        _check_kind(config)
    translated = [config for config in configs if config.kind in TRANSLATED]
    translator = TranslatorProcess(translated) if translated else None
    return {
        config.name: Litellm(config, translator)
        if translator and config.kind in TRANSLATED
        else OpenAiCompatible(config)
        for config in configs
    }


def _check_kind(config: ProviderConfig) -> None:
    kinds = OPENAI_SPEAKING | TRANSLATED
    if config.kind not in kinds:
        known = ", ".join(sorted(kinds))
        raise ValueError(f"provider {config.name!r} has the unknown kind {config.kind!r}; known: {known}")
