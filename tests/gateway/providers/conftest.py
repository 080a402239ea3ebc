"""Every adapter before a loopback provider of its own, all behind one translator process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest_asyncio

from gateway.provider import Provider
from gateway.provider_kinds import build_providers
from gateway.settings import ProviderConfig
from tests.gateway.providers.wire_servers import (
    AnthropicServer,
    BedrockServer,
    GeminiServer,
    OpenAiServer,
    WireServer,
)

KEY = "sk-of-the-provider-0123456789"
HEADER_SECRET = "gate-pass-0123456789"
AWS_SECRET = "aws-secret-of-the-provider-0123456789"
CLAUDE = "claude-sonnet-4-5"
ON_BEDROCK = "bedrock/converse/anthropic.claude-3-5-sonnet-20240620-v1:0"
SECRETS = (KEY, HEADER_SECRET, AWS_SECRET)


@dataclass
class Peer:
    """A provider's server and the adapter that speaks to it."""

    server: WireServer
    provider: Provider
    model: str

    def ask(self, text: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "messages": messages, "max_tokens": 100, **more}

    def asked(self) -> dict[str, Any]:
        """The last request's body, as the provider got it."""
        return self.server.requests[-1].body


def configs(servers: dict[str, WireServer]) -> list[ProviderConfig]:
    """How they are reached; patient, so that a test says what it does not wait for."""
    openai, anthropic, gemini, bedrock = (servers[n] for n in ("openai", "anthropic", "gemini", "bedrock"))
    aws = {"aws_access_key_id": "AKIA0123456789", "aws_secret_access_key": AWS_SECRET}
    patience: dict[str, Any] = {"answer_seconds": 20.0, "first_token_seconds": 20.0, "idle_seconds": 10.0}
    return [
        ProviderConfig(
            name="openai", kind="openai", base_url=f"{openai.base_url}/v1", api_key=KEY, **patience
        ),
        ProviderConfig(
            name="anthropic",
            kind="anthropic",
            base_url=f"{anthropic.base_url}/v1",
            api_key=KEY,
            headers={"x-gate-pass": HEADER_SECRET},
            **patience,
        ),
        ProviderConfig(name="gemini", kind="litellm", base_url=gemini.base_url, api_key=KEY, **patience),
        ProviderConfig(
            name="bedrock",
            kind="litellm",
            base_url=bedrock.base_url,
            extra={**aws, "aws_region_name": "eu-west-1"},
            **patience,
        ),
    ]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def peers() -> AsyncIterator[dict[str, Peer]]:
    servers: dict[str, WireServer] = {
        "openai": OpenAiServer(),
        "anthropic": AnthropicServer(),
        "gemini": GeminiServer(),
        "bedrock": BedrockServer(),
    }
    models = {"openai": "m", "anthropic": CLAUDE, "gemini": "gemini/gemini-2.0-flash", "bedrock": ON_BEDROCK}
    async with contextlib.AsyncExitStack() as stack:
        for server in servers.values():
            await stack.enter_async_context(server.running())
        providers = build_providers(configs(servers))
        for provider in providers.values():
            await provider.start()
        yield {name: Peer(servers[name], providers[name], models[name]) for name in servers}
        for provider in providers.values():
            provider.close()
        for provider in providers.values():
            await provider.finish()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Returns once the condition is true; fails after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)
