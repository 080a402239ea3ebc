"""The translator as a process: what it loads, how it dies, and that it tells nobody a secret."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.errors import ConnectError
from gateway.provider import Terms
from gateway.provider_kinds import build_providers
from gateway.providers.litellm import Litellm
from gateway.settings import ProviderConfig
from gateway.translator.handover import PROVIDER_HEADER, READY, Handover, Upstream
from gateway.translator_process import TranslatorProcess
from tests.gateway.providers.conftest import CLAUDE, HEADER_SECRET, KEY, SECRETS, until
from tests.gateway.providers.wire_servers import AnthropicServer

SILENT = """
import socket
def refuse(*_args, **_more):
    raise AssertionError("the network is reached")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
from gateway.translator.library import Library
Library({})
"""
LEAN = """
import sys
import gateway.provider_kinds, gateway.translator_process
assert not {"litellm", "httpx", "starlette", "openai"} & sys.modules.keys(), sys.modules.keys()
"""
ASK = {"model": CLAUDE, "messages": [{"role": "user", "content": "say hi"}], "max_tokens": 9}


def anthropic(base_url: str, **more: float) -> ProviderConfig:
    headers = {"x-gate-pass": HEADER_SECRET}
    return ProviderConfig(
        name="anthropic", kind="anthropic", base_url=base_url, api_key=KEY, headers=headers, **more
    )


@pytest.mark.parametrize("program", [SILENT, LEAN], ids=["import-without-network", "worker-without-litellm"])
def test_what_is_loaded_where(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def test_a_killed_translator_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with AnthropicServer().running() as server:
        translator = TranslatorProcess([config := anthropic(server.base_url)])
        provider = Litellm(config, translator)
        await provider.start()
        try:
            await provider.complete(ASK)
            killed = translator.pid
            assert killed
            os.kill(killed, signal.SIGKILL)
            await until(lambda: translator.pid != killed)
            answer = await provider.complete(ASK)
            assert answer.payload["choices"][0]["message"]["content"] == "hi"
            assert translator.starts == 2
        finally:
            provider.close()
            await provider.finish()
    assert "the translator process ended" in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)
    assert translator.pid is None
    assert not Path(translator.socket).parent.exists()
    with pytest.raises(ConnectError):
        await provider.complete(ASK)


async def test_a_translator_that_does_not_start_in_time_is_not_waited_for() -> None:
    config = anthropic("http://127.0.0.1:9", connect_seconds=0.0)
    provider = Litellm(config, TranslatorProcess([config], start_seconds=0.01))
    try:
        with pytest.raises(ConnectError, match="did not start in time"):
            await provider.complete(ASK)
        deadline = asyncio.get_running_loop().time() + 0.01
        with pytest.raises(ConnectError, match="did not start in time"):
            await provider.complete(ASK, Terms(deadline=deadline))
    finally:
        provider.close()
        await provider.finish()


async def test_it_ignores_signals_keeps_secrets_and_ends_with_its_gateway(tmp_path: Path) -> None:
    async with AnthropicServer().running() as server:
        directory = tmp_path / "t"
        directory.mkdir()
        handover = Handover(socket=str(directory / "s"), upstreams=[upstream(server.base_url)])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.translator"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(handover.encode())
        assert await process.stdout.readline() == READY
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        bodies = [await ask(handover.socket, text) for text in ("say hi", "leak", "garble", "status 401")]
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        process.stdin.close()
        async with asyncio.timeout(10):
            printed = await process.stdout.read()
            assert await process.wait() == 0
    assert b"a call of provider anthropic failed: status 401" in printed
    seen = b"".join([printed, arguments, environment, *bodies])
    assert not any(secret.encode() in seen for secret in SECRETS)
    assert b"Bad day" not in printed, "what a provider answered is nobody's to log"
    assert not directory.exists()


def upstream(base_url: str) -> Upstream:
    return Upstream(
        name="anthropic",
        kind="anthropic",
        base_url=base_url,
        api_key=KEY,
        headers={"x-gate-pass": HEADER_SECRET},
        extra={},
        ca_file=None,
        connect_seconds=2.0,
        read_seconds=10.0,
        max_answer_bytes=1_000_000,
    )


async def ask(path: str, text: str) -> bytes:
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with httpx.AsyncClient(transport=transport, base_url="http://translator") as client:
        assert (await client.get("/healthz")).status_code == 200
        body = {**ASK, "messages": [{"role": "user", "content": text}]}
        response = await client.post(
            "/v1/chat/completions", json=body, headers={PROVIDER_HEADER: "anthropic"}, timeout=20
        )
        return response.content


def test_an_unknown_kind_stops_the_start() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        build_providers([ProviderConfig(name="x", kind="mystery")])


def test_without_such_a_provider_there_is_no_translator() -> None:
    [provider] = build_providers(
        [ProviderConfig(name="x", kind="openai", base_url="http://localhost/v1")]
    ).values()
    assert not isinstance(provider, Litellm)
