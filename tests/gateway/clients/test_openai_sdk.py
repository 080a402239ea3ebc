"""OpenAI's own client, unmodified: chat completions, embeddings, models."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.clients.able_upstream import THOUGHT, AbleUpstream
from tests.gateway.conftest import USE_CASE, Fleet, Running

MESSAGES: Any = [{"role": "user", "content": "tell me of the sea"}]
SAID = "You said: tell me of the sea"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA, "strict": True}}
    for name in ("weather", "map")
]
PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Trip(BaseModel):
    city: str
    days: int


@pytest.fixture
def completions(gateway: Running) -> Any:
    return gateway.client().chat.completions


def in_a_thread(gateway: Running, work: Any) -> Any:
    """The synchronous client beside the gateway's loop."""

    def run() -> Any:
        with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=gateway.token, max_retries=0) as client:
            return work(client)

    return asyncio.to_thread(run)


async def test_the_synchronous_client(gateway: Running) -> None:
    def work(client: openai.OpenAI) -> tuple[Any, list[Any], list[str]]:
        plain = client.chat.completions.create(model=USE_CASE, messages=MESSAGES)
        with client.chat.completions.create(model=USE_CASE, messages=MESSAGES, stream=True) as stream:
            chunks = list(stream)
        return plain, chunks, [model.id for model in client.models.list()]

    plain, chunks, models = await in_a_thread(gateway, work)
    assert plain.choices[0].message.content == SAID
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert models == [USE_CASE]


async def test_raw_answers_have_the_headers_that_clients_look_for(completions: Any) -> None:
    raw = await completions.with_raw_response.create(model=USE_CASE, messages=MESSAGES)
    assert raw.request_id == raw.headers["x-request-id"]
    assert raw.http_response.status_code == 200
    answer = raw.parse()
    assert answer._request_id == raw.request_id
    assert answer.usage.prompt_tokens_details.cached_tokens == 8
    async with completions.with_streaming_response.create(model=USE_CASE, messages=MESSAGES) as streamed:
        assert (await streamed.parse()).choices[0].message.content == SAID


async def test_a_stream_has_usage_for_those_who_ask(completions: Any) -> None:
    stream = await completions.create(
        model=USE_CASE, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 4
    assert {(chunk.model, chunk.object) for chunk in chunks} == {(USE_CASE, "chat.completion.chunk")}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_helper_for_streams_puts_an_answer_together(completions: Any) -> None:
    async with completions.stream(model=USE_CASE, messages=MESSAGES, logprobs=True) as stream:
        kinds = [event.type async for event in stream]
        answer = await stream.get_final_completion()
    assert kinds.count("content.delta") >= 7
    assert {"content.done", "logprobs.content.delta", "logprobs.content.done"} <= set(kinds)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (SAID, "stop")
    assert "".join(token.token for token in choice.logprobs.content) == SAID


async def test_answers_are_parsed_into_a_model(completions: Any, upstream: AbleUpstream) -> None:
    answer = await completions.parse(model=USE_CASE, messages=MESSAGES, response_format=Trip)
    assert answer.choices[0].message.parsed == Trip(city="Paris", days=7)
    sent = upstream.requests[-1]["response_format"]
    assert sent["json_schema"]["name"] == "Trip"
    assert sent["json_schema"]["strict"] is True
    async with completions.stream(model=USE_CASE, messages=MESSAGES, response_format=Trip) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Trip(city="Paris", days=7)


async def test_a_plain_schema_and_settings_reach_the_provider(
    completions: Any, upstream: AbleUpstream
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    settings = {
        "response_format": form,
        "temperature": 0.2,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
        "logit_bias": {"50256": -100},
        "presence_penalty": 0.1,
        "max_completion_tokens": 99,
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "verbosity": "low",
    }
    answer = await completions.create(model=USE_CASE, messages=MESSAGES, **settings)
    assert answer.choices[0].message.content == '{"city": "Paris"}'
    sent = upstream.requests[-1]
    assert {name: sent[name] for name in settings} == settings


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_over_several_turns(completions: Any, upstream: AbleUpstream, streamed: bool) -> None:
    messages = list(MESSAGES)
    asked = {"model": USE_CASE, "tools": TOOLS, "parallel_tool_calls": True}

    async def ask() -> Any:
        if not streamed:
            return (await completions.create(messages=messages, **asked)).choices[0]
        async with completions.stream(messages=messages, **asked) as stream:
            return (await stream.get_final_completion()).choices[0]

    choice = await ask()
    calls = choice.message.tool_calls
    assert [(call.id, call.function.name) for call in calls] == [("call_0", "weather"), ("call_1", "map")]
    assert {call.function.arguments for call in calls} == {'{"city": "Paris"}'}
    assert choice.finish_reason == "tool_calls"
    messages.append(choice.message.model_dump(exclude_none=True, exclude={"parsed"}))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in calls]
    choice = await ask()
    assert (choice.message.content, choice.finish_reason) == ("The tool says: sun", "stop")
    sent = upstream.requests[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_0", "call_1"]


async def test_pictures_in_a_content(completions: Any, upstream: AbleUpstream) -> None:
    content = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
    ]
    answer = await completions.create(model=USE_CASE, messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "You said: what is this [image_url]"
    assert upstream.requests[-1]["messages"][0]["content"] == content


@pytest.mark.parametrize("streamed", [False, True])
async def test_several_choices(completions: Any, streamed: bool) -> None:
    if streamed:
        async with completions.stream(model=USE_CASE, messages=MESSAGES, n=2) as stream:
            answer = await stream.get_final_completion()
    else:
        answer = await completions.create(model=USE_CASE, messages=MESSAGES, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.message.content for choice in answer.choices} == {SAID}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


async def test_logprobs_of_a_whole_answer(completions: Any, upstream: AbleUpstream) -> None:
    answer = await completions.create(model=USE_CASE, messages=MESSAGES, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == SAID
    assert upstream.requests[-1]["top_logprobs"] == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_fields_of_the_future_pass_both_ways(
    completions: Any, upstream: AbleUpstream, streamed: bool
) -> None:
    future = {"deep": [1, {"two": None}], "big": 2**53}
    answer = await completions.create(
        model=USE_CASE,
        messages=[{"role": "user", "content": "hi", "x_mark": 1}],
        extra_body={"x_future": future, "reasoning_effort": "low"},
        stream=streamed,
    )
    answers = [chunk async for chunk in answer] if streamed else [answer]
    assert all(each.x_future == future for each in answers)
    sent = upstream.requests[-1]
    assert sent["x_future"] == future
    assert sent["messages"][0]["x_mark"] == 1
    if streamed:
        thoughts = [getattr(each.choices[0].delta, "reasoning_content", None) or "" for each in answers]
        assert "".join(thoughts) == THOUGHT
    else:
        assert answer.choices[0].message.reasoning_content == THOUGHT


async def test_embeddings(gateway: Running, upstream: AbleUpstream) -> None:
    embeddings = gateway.client().embeddings
    answer = await embeddings.create(model=USE_CASE, input="sea")  # the client asks for base64 by itself
    assert upstream.requests[-1]["encoding_format"] == "base64"
    assert (answer.model, answer.data[0].embedding) == (USE_CASE, [3.0, 0.5, 0.5, 0.5])
    assert answer.usage.prompt_tokens == 6
    answer = await embeddings.create(
        model=USE_CASE, input=["a", "bc"], dimensions=2, encoding_format="float", user="u1"
    )
    assert [each.embedding for each in answer.data] == [[1.0, 0.5], [2.0, 0.5]]
    assert "messages" not in upstream.requests[-1]
    answer = await embeddings.create(model=USE_CASE, input=[1, 2, 3], extra_body={"x_future": 1})
    assert answer.data[0].embedding[0] == 3.0
    assert upstream.requests[-1]["x_future"] == 1


async def test_models(gateway: Running) -> None:
    models = gateway.client().models
    page = await models.list()
    assert [model.id for model in page.data] == [USE_CASE]
    one = await models.retrieve(USE_CASE)
    assert (one.id, one.object, one.owned_by) == (USE_CASE, "model", "meta-agent")
    with pytest.raises(openai.NotFoundError) as caught:
        await models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


async def test_errors_have_the_clients_classes(gateway: Running, fleet: Fleet, completions: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        await gateway.client("ma_live_nobody_" + "0" * 48).chat.completions.create(
            model=USE_CASE, messages=MESSAGES
        )
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        await completions.create(model="gpt-4o", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as wrong:
        await completions.create(model=USE_CASE, messages=[])
    assert wrong.value.param == "messages"
    await gateway.serves(await fleet.route(await fleet.release("status:429")))
    with pytest.raises(openai.RateLimitError) as limited:
        await completions.create(model=USE_CASE, messages=MESSAGES)
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.request_id
