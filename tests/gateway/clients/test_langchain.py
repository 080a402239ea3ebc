"""LangChain's chat models and embeddings, unmodified."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.gateway.clients.able_upstream import SIGNATURE, THOUGHT, AbleUpstream
from tests.gateway.conftest import USE_CASE, Running

SAID = "You said: tell me of the sea"
QUESTION: Any = [SystemMessage("Be brief."), HumanMessage("tell me of the sea")]
KINDS = ["chat", "responses", "anthropic"]


class Trip(BaseModel):
    """A journey."""

    city: str
    days: int


@tool
def weather(city: str) -> str:
    """How it is there."""
    return f"sun in {city}"


#: The SDK's clients of the models that a test has made.
_clients: list[Any] = []


@pytest.fixture(autouse=True)
async def _leave_no_connection() -> AsyncIterator[None]:
    """LangChain keeps its clients, open, for the life of a process."""
    yield
    for client in _clients:
        await client.close()
    _clients.clear()


def model_of(gateway: Running, kind: str, **more: Any) -> Any:
    if kind == "anthropic":
        claude = ChatAnthropic(
            model_name=USE_CASE, base_url=gateway.base_url, api_key=gateway.token, max_retries=0, **more
        )
        _clients.append(claude._async_client)
        return claude
    model = ChatOpenAI(
        model=USE_CASE,
        base_url=f"{gateway.base_url}/v1",
        api_key=gateway.token,
        max_retries=0,
        use_responses_api=kind == "responses",
        stream_usage=True,  # left to itself, it asks for usage at OpenAI's own address only
        **more,
    )
    _clients.append(model.root_async_client)
    return model


def text_of(message: AIMessage) -> str:
    return str(message.text)


@pytest.mark.parametrize("kind", KINDS)
async def test_invoke_and_stream(gateway: Running, kind: str) -> None:
    model = model_of(gateway, kind)
    answer = await model.ainvoke(QUESTION)
    assert text_of(answer) == SAID
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.response_metadata["model_name"] == USE_CASE
    whole: AIMessageChunk | None = None
    count = 0
    async for chunk in model.astream(QUESTION):
        whole = chunk if whole is None else whole + chunk
        count += 1
    assert whole is not None
    assert text_of(whole) == SAID
    assert count > 5
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 12


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_tools(gateway: Running, upstream: AbleUpstream, kind: str, streamed: bool) -> None:
    model = model_of(gateway, kind).bind_tools([weather])

    async def ask(messages: Any) -> AIMessage:
        if not streamed:
            return await model.ainvoke(messages)  # type: ignore[no-any-return]
        whole = None
        async for chunk in model.astream(messages):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return whole  # type: ignore[no-any-return]

    messages = list(QUESTION)
    answer = await ask(messages)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    result = await weather.ainvoke(call)
    assert isinstance(result, ToolMessage)
    messages += [answer, result]
    assert text_of(await ask(messages)) == "The tool says: sun in Paris"
    sent = upstream.requests[-1]
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert sent["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("kind", KINDS)
async def test_structured_output(gateway: Running, kind: str) -> None:
    model = model_of(gateway, kind).with_structured_output(Trip)
    assert await model.ainvoke(QUESTION) == Trip(city="Paris", days=7)


async def test_thinking_survives_a_turn(gateway: Running, upstream: AbleUpstream) -> None:
    model = model_of(
        gateway, "anthropic", thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2048
    )
    answer = await model.ainvoke(QUESTION)
    [thought, said] = answer.content
    assert (thought["thinking"], thought["signature"]) == (THOUGHT, SIGNATURE)
    assert said["text"] == SAID
    await model.ainvoke([*QUESTION, answer, HumanMessage("go on")])
    blocks = upstream.requests[-1]["messages"][2]["thinking_blocks"]
    assert blocks == [{"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE}]


async def test_reasoning_of_the_responses_api(gateway: Running) -> None:
    model = model_of(gateway, "responses", reasoning={"effort": "low", "summary": "auto"})
    answer = await model.ainvoke(QUESTION)
    kinds = [block["type"] for block in answer.content_blocks]
    assert kinds == ["reasoning", "text"]
    assert text_of(await model.ainvoke([*QUESTION, answer, HumanMessage("go on")])) == "You said: go on"


async def test_embeddings(gateway: Running, upstream: AbleUpstream) -> None:
    embeddings: Any = OpenAIEmbeddings  # its names for these are aliases
    model = embeddings(
        model=USE_CASE,
        base_url=f"{gateway.base_url}/v1",
        api_key=gateway.token,
        check_embedding_ctx_length=False,
        dimensions=2,
    )
    _clients.append(model.async_client._client)
    assert await model.aembed_documents(["a", "bc"]) == [[1.0, 0.5], [2.0, 0.5]]
    assert await model.aembed_query("sea") == [3.0, 0.5]
    assert upstream.requests[-1]["dimensions"] == 2
