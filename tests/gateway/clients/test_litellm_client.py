"""litellm as a client of the gateway, unmodified."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the internet

from typing import Any

import litellm
import pytest
from litellm import exceptions

from tests.gateway.clients.able_upstream import SIGNATURE, THOUGHT, AbleUpstream
from tests.gateway.conftest import USE_CASE, Running

pytestmark = pytest.mark.filterwarnings("ignore")  # its own, of pydantic and of sockets

SAID = "You said: tell me of the sea"
MESSAGES: Any = [{"role": "user", "content": "tell me of the sea"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
KINDS = ["openai", "anthropic"]


def asked(gateway: Running, kind: str, **more: Any) -> dict[str, Any]:
    base = f"{gateway.base_url}/v1" if kind == "openai" else gateway.base_url
    return {
        "model": f"{kind}/{USE_CASE}",
        "api_base": base,
        "api_key": gateway.token,
        "messages": MESSAGES,
        "max_tokens": 2048,
        "num_retries": 0,
        "_skip_mcp_handler": True,  # with tools, it would need a package of its proxy's
        **more,
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_a_completion(gateway: Running, kind: str) -> None:
    answer: Any = await litellm.acompletion(**asked(gateway, kind))
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == 30


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream(gateway: Running, kind: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream: Any = await litellm.acompletion(**asked(gateway, kind, **options))
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usages[-1].completion_tokens == 12


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_tools(gateway: Running, upstream: AbleUpstream, kind: str, streamed: bool) -> None:
    async def ask(messages: Any) -> Any:
        answer: Any = await litellm.acompletion(
            **asked(gateway, kind, messages=messages, tools=TOOLS, stream=streamed)
        )
        if streamed:
            answer = litellm.stream_chunk_builder([chunk async for chunk in answer])
        return answer.choices[0].message

    message = await ask(MESSAGES)
    [call] = message.tool_calls
    assert (call.function.name, call.function.arguments.replace(" ", "")) == ("weather", '{"city":"Paris"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    message = await ask([*MESSAGES, message.model_dump(exclude_none=True), result])
    assert message.content == "The tool says: sun"
    roles = [each["role"] for each in upstream.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_signed_thinking(gateway: Running, upstream: AbleUpstream, streamed: bool) -> None:
    """The gateway's own form of thinking is litellm's, and it gets through Anthropic's form and back."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer: Any = await litellm.acompletion(
        **asked(gateway, "anthropic", thinking=thinking, tools=TOOLS, stream=streamed),
        allowed_openai_params=["thinking"],  # it knows no model by our name
    )
    if streamed:
        answer = litellm.stream_chunk_builder([chunk async for chunk in answer])
    message = answer.choices[0].message
    assert message.reasoning_content == THOUGHT
    [block] = message.thinking_blocks
    assert (block["thinking"], block["signature"]) == (THOUGHT, SIGNATURE)


async def test_embeddings(gateway: Running) -> None:
    answer = await litellm.aembedding(
        model=f"openai/{USE_CASE}",
        api_base=f"{gateway.base_url}/v1",
        api_key=gateway.token,
        input=["a", "bc"],
        dimensions=2,
        encoding_format="float",
        allowed_openai_params=["dimensions"],
    )
    assert [each["embedding"] for each in answer.data] == [[1.0, 0.5], [2.0, 0.5]]


async def test_errors_have_its_classes(gateway: Running) -> None:
    with pytest.raises(exceptions.AuthenticationError):
        await litellm.acompletion(**asked(gateway, "openai", api_key="sk-nobody"))
    with pytest.raises(exceptions.NotFoundError):
        await litellm.acompletion(**asked(gateway, "openai", model="openai/gpt-nobody"))
    with pytest.raises(exceptions.AuthenticationError):
        await litellm.acompletion(**asked(gateway, "anthropic", api_key="sk-nobody"))
