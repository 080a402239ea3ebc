"""Which parameters of a request the library gets to see.

litellm takes its own controls and OpenAI's parameters as arguments of one function: who may send any name
could also say where a call goes and with which credentials. What OpenAI's wire knows passes; so does what
it does not know, unless it is, or looks like, one of the library's controls. Those are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

CHAT = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
EMBEDDINGS = frozenset({"dimensions", "encoding_format", "input", "user"})

#: Handled by the translator itself, or without a meaning for the providers behind it.
_NOT_FORWARDED = frozenset({"extra_body", "metadata", "stream", "stream_options", "store"})
#: Words in the names of controls: where a call goes, as whom, through what, and how often.
_CONTROL_WORDS = (
    "api_base",
    "api_key",
    "api_version",
    "base_url",
    "callback",
    "client",
    "credential",
    "deployment",
    "endpoint",
    "fallback",
    "header",
    "mock",
    "password",
    "proxy",
    "region",
    "retries",
    "retry",
    "secret",
    "session",
    "ssl",
    "timeout",
)
_CONTROL_PREFIXES = (
    "_",
    "anthropic_",
    "aws_",
    "azure_",
    "bedrock_",
    "databricks_",
    "gcs_",
    "gemini_",
    "hf_",
    "litellm",
    "model",
    "oci_",
    "openai_",
    "s3_",
    "sagemaker_",
    "sap_",
    "snowflake_",
    "vertex_",
    "watsonx_",
    "wx_",
)
#: Says nothing, and would be read as a wish for a dearer tier by some providers' translations.
_DEFAULT_TIER = ("service_tier", "auto")
_CONTROL_SUFFIXES = ("_arn", "_key", "_token", "_url")


def forwarded(
    request: Mapping[str, Any], known: frozenset[str], owned: Callable[[str], bool]
) -> dict[str, Any]:
    """The parameters of a request that the library gets; ``owned`` knows its own controls by name."""
    return {
        name: value
        for name, value in request.items()
        if value is not None
        and (name, value) != _DEFAULT_TIER
        and (name in known or not _is_control(name, owned))
    }


def _is_control(name: str, owned: Callable[[str], bool]) -> bool:
    return (
        name in _NOT_FORWARDED
        or name in CHAT  # of another endpoint
        or owned(name)
        or name.startswith(_CONTROL_PREFIXES)
        or name.endswith(_CONTROL_SUFFIXES)
        or any(word in name for word in _CONTROL_WORDS)
    )


def library_model(kind: str, model: str) -> str:
    """The model's name in the library: providers of a kind of their own carry it as a prefix."""
    return model if kind == "litellm" else f"{kind}/{model}"
