"""The chat model behind the planner, built from the settings when it is first needed.

The packages are imported inside the function: they cost seconds, and a fleet without an LLM planner
never needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meta_agent.gateway_settings import ProviderSettings
from meta_agent.settings import Settings

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

TIMEOUT_SECONDS = 60.0
_MAX_TOKENS = 4096


class ModelNotUsableError(ValueError):
    """The settings name no chat model that can be built; the message says what to change."""


def build_chat_model(settings: Settings) -> BaseChatModel:
    """The chat model that ``agent.model`` names as ``provider/model``."""
    name, separator, model = (settings.agent.model or "").partition("/")
    provider = settings.provider(name)
    if not separator or not model:
        raise ModelNotUsableError("agent.model must be provider/model, for example openai/gpt-5-mini")
    if provider is None:
        raise ModelNotUsableError(f"agent.model names the provider {name}, which is not configured")
    if provider.kind == "anthropic":
        return _anthropic(provider, model)
    if provider.kind == "litellm":
        raise ModelNotUsableError("agent.model needs a provider with an OpenAI or Anthropic endpoint")
    return _openai(provider, model)


def _key(provider: ProviderSettings) -> str:
    # Self-hosted servers often want no key, and the clients refuse to start without one.
    return provider.api_key.get_secret_value() if provider.api_key else "none"


def _openai(provider: ProviderSettings, model: str) -> BaseChatModel:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    return ChatOpenAI(
        model=model,
        base_url=provider.url,
        api_key=SecretStr(_key(provider)),
        timeout=TIMEOUT_SECONDS,
        max_retries=1,
        use_responses_api=False,
    )


def _anthropic(provider: ProviderSettings, model: str) -> BaseChatModel:
    from langchain_anthropic import ChatAnthropic
    from pydantic import SecretStr

    address = {"base_url": provider.url} if provider.url else {}
    return ChatAnthropic(
        model_name=model,
        api_key=SecretStr(_key(provider)),
        timeout=TIMEOUT_SECONDS,
        max_retries=1,
        max_tokens_to_sample=_MAX_TOKENS,
        stop=None,
        **address,
    )
