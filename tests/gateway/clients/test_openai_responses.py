"""OpenAI's own client, unmodified: the Responses API, made of chat completions."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.clients.able_upstream import THOUGHT, AbleUpstream
from tests.gateway.conftest import USE_CASE, Fleet, Running

SAID = "You said: tell me of the sea"
ASKED: Any = {"model": USE_CASE, "input": "tell me of the sea"}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


class Trip(BaseModel):
    city: str
    days: int


@pytest.fixture
def responses(gateway: Running) -> Any:
    return gateway.client().responses


async def events_of(responses: Any, **asked: Any) -> list[Any]:
    return [event async for event in await responses.create(**{**ASKED, **asked}, stream=True)]


async def test_a_response(responses: Any, upstream: AbleUpstream, fleet: Fleet) -> None:
    answer = await responses.create(
        **ASKED, instructions="Be brief.", temperature=0.1, max_output_tokens=50, metadata={"a": "b"}
    )
    assert (answer.output_text, answer.status, answer.model) == (SAID, "completed", USE_CASE)
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (30, 12, 42)
    assert usage.input_tokens_details.cached_tokens == 8
    sent = upstream.requests[-1]
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert (sent["temperature"], sent["max_completion_tokens"]) == (0.1, 50)
    row = await fleet.one_row()
    assert f"resp_{row['id']}" == answer.id
    assert (row["surface"], row["response_text"]) == ("responses", SAID)


async def test_the_events_of_a_stream(responses: Any) -> None:
    events = await events_of(responses)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == SAID
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.usage.total_tokens == 42


async def test_the_helper_for_streams(responses: Any) -> None:
    async with responses.stream(**ASKED) as stream:
        assert [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == SAID


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_and_its_output(responses: Any, upstream: AbleUpstream, streamed: bool) -> None:
    async def ask(items: Any) -> Any:
        asked = {"input": items, "tools": [TOOL], "reasoning": {"effort": "low", "summary": "auto"}}
        if streamed:
            return (await events_of(responses, **asked))[-1].response
        return await responses.create(model=USE_CASE, **asked)

    items: list[Any] = [{"role": "user", "content": "how is it there"}]
    answer = await ask(items)
    thought, call = answer.output
    assert (thought.type, thought.summary[0].text) == ("reasoning", THOUGHT)
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Paris"}')
    items += [each.model_dump(exclude_none=True) for each in answer.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sun"})
    answer = await ask(items)
    assert answer.output_text == "The tool says: sun"
    sent = upstream.requests[-1]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "tool"]
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert sent["reasoning_effort"] == "low"


async def test_answers_are_parsed_into_a_model(responses: Any, upstream: AbleUpstream) -> None:
    answer = await responses.parse(**ASKED, text_format=Trip)
    assert answer.output_parsed == Trip(city="Paris", days=7)
    assert upstream.requests[-1]["response_format"]["json_schema"]["name"] == "Trip"
    async with responses.stream(**ASKED, text_format=Trip) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Trip(city="Paris", days=7)


@pytest.mark.parametrize("streamed", [False, True])
async def test_pictures_and_logprobs(responses: Any, upstream: AbleUpstream, streamed: bool) -> None:
    content = [
        {"type": "input_text", "text": "what is this"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
    ]
    asked = {"input": [{"role": "user", "content": content}], "include": ["message.output_text.logprobs"]}
    if streamed:
        answer = (await events_of(responses, **asked))[-1].response
    else:
        answer = await responses.create(model=USE_CASE, **asked)
    assert answer.output_text == "You said: what is this [image_url]"
    logprobs = answer.output[0].content[0].logprobs
    assert "".join(token.token for token in logprobs) == answer.output_text
    assert upstream.requests[-1]["messages"][0]["content"][1]["image_url"]["detail"] == "low"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("store", True),
        ("background", True),
        ("prompt", {"id": "p"}),
        ("truncation", "auto"),
        ("tools", [{"type": "web_search"}]),
        ("include", ["web_search_call.results"]),
    ],
)
async def test_what_needs_a_memory_is_refused_by_name(
    responses: Any, upstream: AbleUpstream, option: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await responses.create(**ASKED, **{option: value})
    assert option in caught.value.message
    assert (caught.value.param or "").startswith(option)
    assert upstream.requests == []


async def test_kept_responses_are_not_served(responses: Any) -> None:
    for call in (responses.retrieve, responses.cancel, responses.delete, responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="nothing at /v1/responses/resp_1"):
            await call("resp_1")


async def test_a_stream_that_is_withheld(gateway: Running, fleet: Fleet, responses: Any) -> None:
    release = await fleet.release("chars:Once upon a time you should kill yourself and more")
    await gateway.serves(await fleet.route(release))
    last = (await events_of(responses))[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "content_filter"
    assert last.response.output_text == "Once upon a time you should "


async def test_a_stream_that_breaks(gateway: Running, fleet: Fleet, responses: Any) -> None:
    await gateway.serves(await fleet.route(await fleet.release("half:")))
    stream = await responses.create(**{**ASKED, "input": "a b c d"}, stream=True)
    kinds = [event.type async for event in stream]
    assert kinds[-1] in ("error", "response.failed")
