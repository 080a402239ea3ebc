"""A simulated provider as a process of its own, and what the demo's tests ask of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class RunningProvider:
    """A provider process and an HTTP client to it."""

    process: subprocess.Popen[str]
    url: str
    model: str
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=5, trust_env=False))

    def behave(self, **traits: object) -> dict[str, Any]:
        """Change the behaviour of the running process."""
        answer = self.http.patch(f"{self.url}/_sim/behaviour/{self.model}", json=traits)
        answer.raise_for_status()
        return dict(answer.json())

    def stats(self) -> dict[str, int]:
        """What the process says it served."""
        return dict(self.http.get(f"{self.url}/_sim/stats").json()[self.model])

    def client(self, api_key: str = "any", timeout: float = 5.0) -> openai.OpenAI:
        """The official client, pointed at the process."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key,
            max_retries=0,
            timeout=timeout,
            http_client=httpx.Client(trust_env=False),
        )


def start_provider(persona: str, *arguments: str) -> RunningProvider:
    """Start one persona on a free port; its first line says where it listens."""
    module = "meta_agent.demo.provider"
    command = [sys.executable, "-m", module, "--persona", persona, "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    words = process.stdout.readline().split()
    return RunningProvider(process, words[3].removesuffix("/v1"), words[5])


def stop(provider: RunningProvider) -> int:
    """Stop a process as its supervisor would; its exit status."""
    provider.process.terminate()
    status = provider.process.wait(timeout=5)
    provider.http.close()
    assert provider.process.stdout is not None
    provider.process.stdout.close()
    return status


@pytest.fixture(scope="session")
def _bargain() -> Iterator[tuple[RunningProvider, dict[str, Any]]]:
    provider = start_provider("bargain")
    usual = provider.http.get(f"{provider.url}/_sim/behaviour/{provider.model}").json()
    yield provider, usual
    stop(provider)


@pytest.fixture
def bargain(_bargain: tuple[RunningProvider, dict[str, Any]]) -> Iterator[RunningProvider]:
    """The bargain provider, fast, and well again for every test."""
    provider, usual = _bargain
    provider.behave(ttft_seconds=0.0, seconds_per_token=0.0, quality=1.0)
    yield provider
    provider.behave(**usual)


@pytest.fixture
def launch() -> Iterator[Callable[..., RunningProvider]]:
    """Start further providers, stopped with the test."""
    started: list[RunningProvider] = []

    def run(persona: str, *arguments: str) -> RunningProvider:
        started.append(start_provider(persona, *arguments))
        return started[-1]

    yield run
    assert [stop(provider) for provider in started] == [0] * len(started)
