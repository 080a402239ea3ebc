"""What every adapter does alike, whatever its provider's wire looks like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.errors import (
    ConnectError,
    HungUpError,
    InvalidAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from gateway.provider import Terms
from tests.gateway.providers.conftest import SECRETS, Peer, until
from tests.gateway.providers.wire_servers import CALL, INPUT_TOKENS, OUTPUT_TOKENS, RETRY_AFTER

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look somewhere.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}

Way = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["openai", "anthropic", "gemini", "bedrock"])
def peer(peers: dict[str, Peer], request: pytest.FixtureRequest) -> Peer:
    return peers[request.param]


async def complete(peer: Peer, text: str, **terms: Any) -> dict[str, Any]:
    answer = await peer.provider.complete(peer.ask(text), Terms(**terms))
    message: dict[str, Any] = answer.payload["choices"][0]["message"]
    return message


async def stream(peer: Peer, text: str, **terms: Any) -> list[dict[str, Any]]:
    chunks: list[dict[str, Any]] = []
    await read(peer, text, chunks, **terms)
    return chunks


async def read(peer: Peer, text: str, chunks: list[dict[str, Any]], **terms: Any) -> None:
    request = peer.ask(text, stream=True, stream_options={"include_usage": True})
    async for arrived in peer.provider.stream(request, Terms(**terms)):
        chunks += arrived


both_ways = pytest.mark.parametrize("way", [complete, stream])


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(delta.get("content") or "" for delta in deltas(chunks))


def soon(seconds: float = 0.5) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_plain_answer(peer: Peer) -> None:
    answer = await peer.provider.complete(peer.ask("say hello sea"))
    choice = answer.payload["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello sea", "stop")
    assert (choice["message"]["role"], answer.payload["object"]) == ("assistant", "chat.completion")
    assert answer.payload["usage"]["prompt_tokens"] == INPUT_TOKENS
    assert answer.payload["usage"]["completion_tokens"] == OUTPUT_TOKENS
    assert answer.waited_seconds > 0


async def test_a_stream_gives_the_same_text_and_usage(peer: Peer) -> None:
    chunks = await stream(peer, "say the sea is wide")
    assert text_of(chunks) == "the sea is wide"
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert len({chunk["id"] for chunk in chunks if chunk.get("id")}) == 1
    last = chunks[-1]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == INPUT_TOKENS
    assert last["usage"]["completion_tokens"] == OUTPUT_TOKENS


async def test_tools_go_there_and_back(peer: Peer) -> None:
    asked = peer.ask("tools", tools=[TOOL])
    message = (await peer.provider.complete(asked)).payload["choices"][0]["message"]
    [call] = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    assert json.loads(call["function"]["arguments"]) == CALL
    result = {"role": "tool", "tool_call_id": call["id"], "content": "stars"}
    again = {**asked, "messages": [*asked["messages"], message, result]}
    answer = await peer.provider.complete(again)
    assert "stars" in answer.payload["choices"][0]["message"]["content"]


async def test_a_stream_assembles_a_tool_call(peer: Peer) -> None:
    chunks: list[dict[str, Any]] = []
    async for arrived in peer.provider.stream(peer.ask("tools", tools=[TOOL], stream=True)):
        chunks += arrived
    calls = [call["function"] for delta in deltas(chunks) for call in delta.get("tool_calls") or ()]
    assert "".join(call.get("name") or "" for call in calls) == "look"
    assert json.loads("".join(call.get("arguments") or "" for call in calls)) == CALL
    assert "tool_calls" in [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]


@both_ways
@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 529])
async def test_an_error_keeps_its_status(peer: Peer, way: Way, status: int) -> None:
    before = len(peer.server.requests)
    with pytest.raises(UpstreamStatusError) as caught:
        await way(peer, f"status {status}")
    assert caught.value.status == status
    assert caught.value.message.endswith(f"says {status}")
    assert caught.value.retry_after == (RETRY_AFTER if status == 429 else None)
    assert len(peer.server.requests) == before + 1, "an adapter never tries again"


@both_ways
async def test_a_slow_provider_is_given_up_and_told_so(peer: Peer, way: Way) -> None:
    before = peer.server.cut_off
    with pytest.raises(UpstreamTimeoutError):
        await way(peer, "slow", deadline=soon(), first_token_seconds=0.5)
    await until(lambda: peer.server.cut_off == before + 1)


async def test_a_stream_that_falls_silent(peer: Peer) -> None:
    before = peer.server.cut_off
    arrived: list[dict[str, Any]] = []
    with pytest.raises(UpstreamTimeoutError):
        await read(peer, "mute", arrived, idle_seconds=0.4)
    assert text_of(arrived).startswith("one")
    await until(lambda: peer.server.cut_off == before + 1)


@both_ways
async def test_an_answer_that_is_cut_off(peer: Peer, way: Way) -> None:
    with pytest.raises(StreamBrokenError):
        await way(peer, "half")


@pytest.mark.parametrize("scenario", ["truncate", "relapse"])
async def test_a_stream_that_ends_without_an_end(peer: Peer, scenario: str) -> None:
    arrived: list[dict[str, Any]] = []
    with pytest.raises(StreamBrokenError):
        await read(peer, scenario, arrived)
    assert "one two three".startswith(text_of(arrived))
    assert not any(choice["finish_reason"] for chunk in arrived for choice in chunk["choices"])


@pytest.mark.parametrize("scenario", ["lie", "garble"])
async def test_an_answer_that_is_none(peer: Peer, scenario: str) -> None:
    with pytest.raises(InvalidAnswerError):
        await complete(peer, scenario)
    with pytest.raises((InvalidAnswerError, StreamBrokenError)):
        await stream(peer, scenario)


@both_ways
async def test_a_connection_that_is_closed_before_any_answer(peer: Peer, way: Way) -> None:
    with pytest.raises((ConnectError, HungUpError)):
        await way(peer, "hangup")


@both_ways
async def test_nobody_is_followed_elsewhere(peer: Peer, way: Way) -> None:
    with pytest.raises(UpstreamStatusError) as caught:
        await way(peer, "redirect")
    assert caught.value.status == 307


@both_ways
async def test_a_cancelled_call_closes_the_providers_connection(peer: Peer, way: Way) -> None:
    before, asked = peer.server.cut_off, len(peer.server.requests)
    task = asyncio.ensure_future(way(peer, "slow"))
    await until(lambda: len(peer.server.requests) > asked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: peer.server.cut_off == before + 1)


async def test_a_stream_that_nobody_reads_on_closes_the_providers_connection(peer: Peer) -> None:
    before = peer.server.cut_off
    chunks = peer.provider.stream(peer.ask("mute", stream=True))
    await anext(chunks)
    await chunks.aclose()
    await until(lambda: peer.server.cut_off == before + 1)


async def test_many_calls_at_once(peer: Peer) -> None:
    messages = await asyncio.gather(*(complete(peer, f"say {number}") for number in range(20)))
    assert [message["content"] for message in messages] == [str(number) for number in range(20)]


@pytest.mark.parametrize("name", ["openai", "gemini"])
async def test_embeddings(peers: dict[str, Peer], name: str) -> None:
    peer = peers[name]
    model = peer.model if name == "openai" else "gemini/gemini-embedding-001"
    answer = await peer.provider.embed({"model": model, "input": ["sea", "sky"]})
    assert [row["embedding"] for row in answer.payload["data"]] == [[0.5, -0.5], [0.5, -0.5]]


async def test_a_provider_without_embeddings_says_so(peers: dict[str, Peer]) -> None:
    with pytest.raises(UpstreamError) as caught:
        await peers["anthropic"].provider.embed({"model": "claude-sonnet-4-5", "input": "sea"})
    assert not any(secret in str(caught.value) for secret in SECRETS)
