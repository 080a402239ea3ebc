"""What a request looks like on the far side of the translator, and what of an answer survives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import UpstreamStatusError
from tests.gateway.providers.conftest import HEADER_SECRET, KEY, SECRETS, Peer
from tests.gateway.providers.wire_servers import SIGNATURE, THOUGHT

pytestmark = pytest.mark.asyncio(loop_scope="session")

THINKING = {"type": "enabled", "budget_tokens": 1024}
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TRANSLATED = ["anthropic", "gemini", "bedrock"]


async def whole(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    answer = await peer.provider.complete(request)
    message: dict[str, Any] = answer.payload["choices"][0]["message"]
    return message


async def test_credentials_and_headers(peers: dict[str, Peer]) -> None:
    heads: dict[str, dict[str, str]] = {}
    for name in TRANSLATED:
        await whole(peers[name], peers[name].ask("say hi"))
        heads[name] = peers[name].server.requests[-1].headers
    assert (heads["anthropic"]["x-api-key"], heads["anthropic"]["x-gate-pass"]) == (KEY, HEADER_SECRET)
    assert heads["anthropic"]["anthropic-version"]
    assert heads["gemini"]["x-goog-api-key"] == KEY
    assert heads["bedrock"]["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIA")
    assert "eu-west-1" in heads["bedrock"]["authorization"]


async def test_models_keep_their_names(peers: dict[str, Peer]) -> None:
    for name in TRANSLATED:
        answer = await peers[name].provider.complete(peers[name].ask("say hi"))
        assert answer.payload["model"] == peers[name].model
    assert peers["anthropic"].asked()["model"] == "claude-sonnet-4-5"
    assert peers["anthropic"].server.requests[-1].path == "/v1/messages"
    assert "/models/gemini-2.0-flash:generateContent" in peers["gemini"].server.requests[-1].path


async def test_thoughts_and_their_signature_come_back(peers: dict[str, Peer]) -> None:
    peer = peers["anthropic"]
    asked = peer.ask("think blue", thinking=THINKING, max_tokens=2048)
    message = await whole(peer, asked)
    assert peer.asked()["thinking"] == THINKING
    assert (message["content"], message["reasoning_content"]) == ("blue", THOUGHT)
    [block] = message["thinking_blocks"]
    assert (block["thinking"], block["signature"]) == (THOUGHT, SIGNATURE)
    again = [*asked["messages"], message, {"role": "user", "content": "say more"}]
    await whole(peer, {**asked, "messages": again})
    sent = peer.asked()["messages"][1]["content"]
    assert sent[0] == {"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE}


async def test_thoughts_are_streamed(peers: dict[str, Peer]) -> None:
    peer = peers["anthropic"]
    request = peer.ask("think blue", thinking=THINKING, max_tokens=2048, stream=True)
    deltas = [
        choice["delta"]
        async for chunks in peer.provider.stream(request)
        for chunk in chunks
        for choice in chunk["choices"]
    ]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == THOUGHT
    blocks = [block for delta in deltas for block in delta.get("thinking_blocks") or ()]
    assert SIGNATURE in [block.get("signature") for block in blocks]


async def test_marks_for_the_providers_cache_survive(peers: dict[str, Peer]) -> None:
    peer = peers["anthropic"]
    mark = {"type": "ephemeral"}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": mark}]}
    request = peer.ask("say hi")
    await whole(peer, {**request, "messages": [system, *request["messages"]]})
    assert peer.asked()["system"][0]["cache_control"] == mark


async def test_unknown_parameters_pass_and_controls_do_not(peers: dict[str, Peer]) -> None:
    peer = peers["anthropic"]
    controls = {
        "api_base": "http://127.0.0.1:9",
        "base_url": "http://127.0.0.1:9",
        "api_key": "another",
        "mock_response": "mocked",
        "extra_headers": {"x-api-key": "another"},
        "extra_body": {"model": "dearer"},
        "custom_llm_provider": "openai",
        "fallbacks": ["dearer"],
        "num_retries": 3,
        "timeout": 0.001,
    }
    message = await whole(peer, peer.ask("say hi", top_k=5, **controls))
    sent = peer.server.requests[-1]
    assert message["content"] == "hi"
    assert (sent.body["top_k"], sent.body["model"]) == (5, "claude-sonnet-4-5")
    assert sent.headers["x-api-key"] == KEY
    assert not controls.keys() & sent.body.keys()


async def test_parameters_that_a_model_does_not_know_are_left_out(peers: dict[str, Peer]) -> None:
    peer = peers["anthropic"]
    message = await whole(peer, peer.ask("say hi", logit_bias={"1": 1}, frequency_penalty=1, seed=1))
    assert message["content"] == "hi"


@pytest.mark.parametrize("name", TRANSLATED)
async def test_pictures_schemas_and_system_words(peers: dict[str, Peer], name: str) -> None:
    peer = peers[name]
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    content = [picture, {"type": "text", "text": "say hi"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
    schema = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    await whole(peer, peer.ask("", messages=messages, response_format=wanted, service_tier="auto"))
    sent = json.dumps(peer.asked())
    assert PICTURE in sent
    assert "Be brief." in sent
    assert "mood" in sent
    assert "service" not in sent


@pytest.mark.parametrize("name", TRANSLATED)
async def test_a_request_that_cannot_be_translated_is_the_callers_fault(
    peers: dict[str, Peer], name: str
) -> None:
    peer = peers[name]
    before = len(peer.server.requests)
    inside = {"type": "image_url", "image_url": {"url": f"{peer.server.base_url}/admin.png"}}
    for message in ({"role": "strange", "content": "say hi"}, {"role": "user", "content": [inside]}):
        with pytest.raises(UpstreamStatusError) as caught:
            await whole(peer, peer.ask("", messages=[message]))
        assert caught.value.status in (400, 422)
        assert "litellm." not in caught.value.message
        assert "Traceback" not in caught.value.message
    assert len(peer.server.requests) == before, "nobody makes the translator look at private addresses"


@pytest.mark.parametrize("name", TRANSLATED)
async def test_an_error_that_repeats_the_credentials_is_told_without_them(
    peers: dict[str, Peer], name: str
) -> None:
    with pytest.raises(UpstreamStatusError) as caught:
        await whole(peers[name], peers[name].ask("leak"))
    assert caught.value.status == 400
    assert "content-type" in caught.value.message
    assert not any(secret in caught.value.message for secret in SECRETS)
