"""Anthropic's own client, unmodified, before models that speak OpenAI's chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel

from tests.gateway.clients.able_upstream import SIGNATURE, THOUGHT, AbleUpstream
from tests.gateway.conftest import USE_CASE, Fleet, Running, until

SAID = "You said: tell me of the sea"
ASKED: Any = {
    "model": USE_CASE,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "tell me of the sea"}],
}
TOOLS: Any = [
    {
        "name": "weather",
        "description": "d",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "cache_control": {"type": "ephemeral"},
    }
]


class Trip(BaseModel):
    city: str
    days: int


def said(message: Any) -> str:
    return str(message.content[0].text)


def kind_of(error: Any) -> str:
    return str(error.body["error"]["type"])


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=gateway.base_url, api_key=gateway.token, max_retries=0, timeout=20
    ) as found:
        yield found


async def test_a_message(client: anthropic.AsyncAnthropic, upstream: AbleUpstream, fleet: Fleet) -> None:
    mark: Any = {"type": "ephemeral"}
    raw = await client.messages.with_raw_response.create(
        **ASKED,
        system=[{"type": "text", "text": "Be brief.", "cache_control": mark}],
        extra_body={"temperature": 0.5},  # this version of the client has no name for it
        stop_sequences=["END"],
        metadata={"user_id": "u1"},
    )
    message: Any = raw.parse()
    message = await message if asyncio.iscoroutine(message) else message
    assert message._request_id == raw.headers["x-request-id"]
    assert [block.type for block in message.content] == ["text"]
    assert (message.content[0].text, message.stop_reason, message.model) == (SAID, "end_turn", USE_CASE)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (22, 8)
    sent = upstream.requests[-1]
    assert sent["messages"][0]["content"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert (sent["max_tokens"], sent["stop"], sent["user"]) == (100, ["END"], "u1")
    assert sent["temperature"] == 0.5
    row = await fleet.one_row()
    assert f"msg_{row['id']}" == message.id
    assert row["surface"] == "messages"


async def test_a_key_may_be_a_bearer_token(gateway: Running) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=gateway.base_url, auth_token=gateway.token, api_key=None, max_retries=0
    ) as client:
        assert said(await client.messages.create(**ASKED)) == SAID


async def test_the_synchronous_client(gateway: Running) -> None:
    def run() -> tuple[Any, str]:
        with anthropic.Anthropic(base_url=gateway.base_url, api_key=gateway.token, max_retries=0) as client:
            plain = client.messages.create(**ASKED)
            with client.messages.stream(**ASKED) as stream:
                return plain, "".join(stream.text_stream)

    plain, streamed = await asyncio.to_thread(run)
    assert plain.content[0].text == streamed == SAID


async def test_a_stream(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(**ASKED) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == said(final) == SAID
    assert (final.stop_reason, final.usage.output_tokens, final.usage.input_tokens) == ("end_turn", 12, 22)
    events = [event.type async for event in await client.messages.create(**ASKED, stream=True)]
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_thinking_tools_and_their_results(
    client: anthropic.AsyncAnthropic, upstream: AbleUpstream, streamed: bool
) -> None:
    messages: list[Any] = list(ASKED["messages"])
    asked: Any = {**ASKED, "tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 1024}}

    async def ask() -> Any:
        if not streamed:
            return await client.messages.create(**{**asked, "messages": messages})
        async with client.messages.stream(**{**asked, "messages": messages}) as stream:
            return await stream.get_final_message()

    message = await ask()
    thought, call = message.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", THOUGHT, SIGNATURE)
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"
    messages.append({"role": "assistant", "content": [each.model_dump() for each in message.content]})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun"}
    messages.append({"role": "user", "content": [result]})
    message = await ask()
    assert message.content[-1].text == "The tool says: sun"
    sent = upstream.requests[-1]
    assert sent["thinking"] == asked["thinking"]
    assert sent["tools"][0]["cache_control"] == {"type": "ephemeral"}
    said = sent["messages"][1]
    assert said["thinking_blocks"] == [{"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE}]
    assert said["tool_calls"][0]["id"] == call.id
    assert sent["messages"][2] == {"role": "tool", "tool_call_id": call.id, "content": "sun"}


async def test_pictures(client: anthropic.AsyncAnthropic, upstream: AbleUpstream) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}}
    content = [picture, {"type": "text", "text": "what is this"}]
    message = await client.messages.create(**{**ASKED, "messages": [{"role": "user", "content": content}]})
    assert said(message) == "You said: [image_url] what is this"
    sent = upstream.requests[-1]["messages"][0]["content"][0]
    assert sent["image_url"]["url"] == "data:image/png;base64,iVBORw0K"


async def test_answers_are_parsed_into_a_model(
    client: anthropic.AsyncAnthropic, upstream: AbleUpstream
) -> None:
    message = await client.messages.parse(**ASKED, output_format=Trip)
    assert message.parsed_output == Trip(city="Paris", days=7)
    assert upstream.requests[-1]["response_format"]["type"] == "json_schema"


async def test_models(client: anthropic.AsyncAnthropic) -> None:
    page = await client.models.list()
    assert [model.id for model in page.data] == [USE_CASE]
    assert not page.has_more
    assert [model.display_name async for model in client.models.list()] == [USE_CASE]
    one = await client.models.retrieve(USE_CASE)
    assert (one.id, one.type, one.display_name) == (USE_CASE, "model", USE_CASE)
    assert one.created_at.year > 2000


async def test_errors_have_the_clients_classes(
    gateway: Running, fleet: Fleet, client: anthropic.AsyncAnthropic
) -> None:
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        await client.with_options(api_key="sk-ant-nobody").messages.create(**ASKED)
    assert kind_of(unknown.value) == "authentication_error"
    with pytest.raises(anthropic.NotFoundError, match="no use case") as missing:
        await client.messages.create(**{**ASKED, "model": "claude-opus-4"})
    assert kind_of(missing.value) == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-opus-4")
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        await client.beta.messages.create(
            **ASKED, mcp_servers=[{"type": "url", "url": "https://example.org", "name": "x"}]
        )
    await gateway.serves(await fleet.route(await fleet.release("status:429")))
    with pytest.raises(anthropic.RateLimitError) as limited:
        await client.messages.create(**ASKED)
    assert kind_of(limited.value) == "rate_limit_error"
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.request_id
    await gateway.serves(await fleet.route(await fleet.release("status:500")))
    with pytest.raises(anthropic.InternalServerError) as failed:
        async with client.messages.stream(**ASKED):
            pass
    assert kind_of(failed.value) == "api_error"


async def test_a_limit_of_the_key_is_told_in_anthropics_words(gateway: Running, fleet: Fleet) -> None:
    token = await fleet.key("small", limits={"requests_per_minute": 1})
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key=token, max_retries=0) as client:

        async def heard() -> bool:
            try:
                await client.messages.create(**ASKED)
            except anthropic.AuthenticationError:
                return False  # the gateway has not heard of the key yet
            return True

        await until(heard)
        with pytest.raises(anthropic.RateLimitError) as limited:
            await client.messages.create(**ASKED)
    assert limited.value.response.headers["retry-after"]


async def test_tokens_are_not_counted(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="count_tokens"):
        await client.messages.count_tokens(model=USE_CASE, messages=ASKED["messages"])


async def test_a_message_that_is_withheld(
    gateway: Running, fleet: Fleet, client: anthropic.AsyncAnthropic
) -> None:
    release = await fleet.release("chars:Once upon a time you should kill yourself and more")
    await gateway.serves(await fleet.route(release))
    async with client.messages.stream(**ASKED) as stream:
        final = await stream.get_final_message()
    assert (said(final), final.stop_reason) == ("Once upon a time you should ", "refusal")


async def test_a_stream_that_breaks(gateway: Running, fleet: Fleet, client: anthropic.AsyncAnthropic) -> None:
    await gateway.serves(await fleet.route(await fleet.release("half:")))
    with pytest.raises(anthropic.APIStatusError, match="stopped in the middle"):
        async with client.messages.stream(
            model=USE_CASE, max_tokens=9, messages=[{"role": "user", "content": "a b c d"}]
        ) as stream:
            await stream.get_final_message()
