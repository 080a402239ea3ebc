"""The Responses API in front of chat completions, judged by the types and the parser of OpenAI's client."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from typing import Any

import httpx
import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from gateway.answer_guard import AnswerGuard
from gateway.detectors.lexical import LexicalDetector
from gateway.errors import ApiError
from gateway.surface import Asked, Surface
from gateway.surfaces.responses import ResponsesSurface

Json = dict[str, Any]
SURFACE = ResponsesSurface()
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
#: What OpenAI sends although its types do not say so.
UNTYPED = {"store", "status", "bytes"}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def is_a_surface() -> Surface:
    """For mypy."""
    return SURFACE


def asked(**fields: Any) -> Asked:
    body = {"model": "story", "input": "Hi", **fields}
    return Asked(interaction_id="int_1", model="story", body=body, created=1_700_000_000)


def read(**fields: Any) -> Json:
    body = {"model": "story", "input": "Hi", **fields}
    before = copy.deepcopy(body)
    chat = SURFACE.read(body)
    assert body == before
    return chat


def messages(*items: Json) -> list[Json]:
    found = read(input=list(items))["messages"]
    assert isinstance(found, list)
    return found


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400
    return caught.value


def completion(message: Json, finish_reason: str = "stop", **fields: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion", "choices": [{**choice, **fields}], "usage": USAGE}


def chunk(delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **fields}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}


def ending(finish_reason: str = "stop") -> list[Json]:
    return [chunk({}, finish_reason), {"id": "x", "choices": [], "usage": USAGE}]


def valid(response: Json) -> Json:
    """The response, after OpenAI's types have looked at it as it is on the wire."""
    check_fields(Response.model_validate_json(orjson.dumps(response), strict=True))
    return response


def check_fields(value: Any) -> None:
    """No field that the types do not know."""
    if isinstance(value, list):
        for member in value:
            check_fields(member)
    elif isinstance(value, BaseModel):
        assert set(value.model_extra or {}) <= UNTYPED, value
        for _, member in value:
            check_fields(member)


def answer(message: Json, finish_reason: str = "stop", request: Json | None = None, **fields: Any) -> Json:
    return valid(SURFACE.answer(completion(message, finish_reason, **fields), asked(**(request or {}))))


def parsed(raw: bytes) -> list[Json]:
    """The events of a stream, each one valid, in the order that the protocol demands."""
    events = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        typed = EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        assert typed.type == event["type"]
        check_fields(typed)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    return events


def stream(chunks: list[Json], **request: Any) -> list[Json]:
    writer = SURFACE.writer(asked(**request))
    return parsed(b"".join(writer.chunk(copy.deepcopy(one)) for one in chunks) + writer.end())


def gathered(events: list[Json]) -> list[Json]:
    """The items as a client gathers them from the deltas alone."""
    items: list[Json] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            assert all(item["status"] == "completed" for item in items)  # one after the other
            items.append(event["item"])
        elif kind in ("content_part.added", "reasoning_summary_part.added"):
            shelf, place = part_of(items, event)
            assert place == len(shelf)
            shelf.append(event["part"])
        elif kind.endswith(".delta"):
            add_delta(items, event, kind)
        elif kind == "output_item.done":
            item = items[event["output_index"]]
            # The status moves, and the seal comes, with the end.
            late = {name: event["item"].get(name) for name in ("status", "encrypted_content")}
            item.update({name: value for name, value in late.items() if value is not None})
            assert item == event["item"]
        elif kind.endswith(".done"):
            check_done(items, event, kind)
    return items


def part_of(items: list[Json], event: Json) -> tuple[list[Json], int]:
    item = items[event["output_index"]]
    assert item["id"] == event["item_id"]
    if "summary_index" in event:
        return item["summary"], event["summary_index"]
    return item["content"], event["content_index"]


def holder_of(items: list[Json], event: Json, kind: str) -> tuple[Json, str]:
    field = {"function_call_arguments": "arguments", "custom_tool_call_input": "input", "refusal": "refusal"}
    name = field.get(kind.split(".")[0], "text")
    if name in ("arguments", "input"):
        return items[event["output_index"]], name
    shelf, place = part_of(items, event)
    return shelf[place], name


def add_delta(items: list[Json], event: Json, kind: str) -> None:
    holder, name = holder_of(items, event, kind)
    holder[name] += event["delta"]
    if holder["type"] == "output_text":
        holder["logprobs"] = holder["logprobs"] + event["logprobs"]


def check_done(items: list[Json], event: Json, kind: str) -> None:
    if "part" in event:
        shelf, place = part_of(items, event)
        assert shelf[place] == event["part"]
    else:
        holder, name = holder_of(items, event, kind)
        assert holder[name] == event[name]


def types(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# -- reading


def test_a_string_is_what_the_user_says_and_instructions_come_first() -> None:
    assert read(instructions="Be brief.") == {
        "model": "story",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }


def test_fields_move_to_where_a_chat_has_them() -> None:
    schema = {"type": "object"}
    chat = read(
        text={
            "format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True},
            "verbosity": "low",
        },
        reasoning={"effort": "high", "summary": "auto"},
        max_output_tokens=7,
        top_logprobs=2,
        temperature=1,
        top_p=0.5,
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        metadata={"conversation_id": "c"},
        service_tier="flex",
        stream=True,
        stream_options={"include_obfuscation": False},
        store=False,
        background=False,
        truncation="disabled",
        previous_response_id=None,
        include=["reasoning.encrypted_content"],
        a_field_of_tomorrow={"x": None},
        thinking={"type": "enabled"},
    )
    del chat["messages"]
    assert chat == {
        "model": "story",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
        "verbosity": "low",
        "reasoning_effort": "high",
        "max_completion_tokens": 7,
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 1,
        "top_p": 0.5,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "metadata": {"conversation_id": "c"},
        "service_tier": "flex",
        "stream": True,
        "stream_options": {"include_usage": True},
        "a_field_of_tomorrow": {"x": None},
        "thinking": {"type": "enabled"},
    }


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_other_formats(kind: str) -> None:
    assert read(text={"format": {"type": kind}})["response_format"] == {"type": kind}


def test_logprobs_may_be_asked_for_by_include() -> None:
    assert read(include=["message.output_text.logprobs"])["logprobs"] is True


def test_tools_and_their_choice_are_nested() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
    chat = read(
        tools=[
            {**WEATHER, "cache_control": {"type": "ephemeral"}},
            {"type": "custom", "name": "run", "format": grammar},
        ],
        tool_choice={
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "weather"}, {"type": "custom", "name": "run"}],
        },
        parallel_tool_calls=False,
    )
    function = {"name": "weather", "parameters": {"type": "object"}, "strict": True}
    custom_format = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /a/"}}
    assert chat["tools"] == [
        {"type": "function", "function": function, "cache_control": {"type": "ephemeral"}},
        {"type": "custom", "custom": {"name": "run", "format": custom_format}},
    ]
    assert chat["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [
                {"type": "function", "function": {"name": "weather"}},
                {"type": "custom", "custom": {"name": "run"}},
            ],
        },
    }
    assert chat["parallel_tool_calls"] is False
    named = read(tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    assert named["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


def test_without_tools_nothing_is_said_of_tools() -> None:
    chat = read(tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & chat.keys()


def test_parts_of_a_message() -> None:
    cached = {"type": "input_text", "text": "a", "cache_control": {"type": "ephemeral"}}
    parts = [
        cached,
        {"type": "input_image", "image_url": "data:x", "detail": "low"},
        {"type": "input_file", "file_data": "data:y", "filename": "y.pdf"},
        {"type": "input_audio", "input_audio": {"data": "z", "format": "mp3"}},
    ]
    assert messages({"role": "user", "content": parts}) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
                {"type": "file", "file": {"file_data": "data:y", "filename": "y.pdf"}},
                {"type": "input_audio", "input_audio": {"data": "z", "format": "mp3"}},
            ],
        }
    ]


def test_a_single_text_is_written_plainly() -> None:
    text = {"type": "output_text", "text": "a", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}
    assert messages(item) == [{"role": "assistant", "content": "a"}]


def test_one_turn_of_the_assistant_is_one_message() -> None:
    image = {"type": "input_image", "image_url": "data:x"}
    found = messages(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm. "}]},
        {"type": "message", "role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "ls"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [image]},
        {"type": "message", "role": "assistant", "content": "Sunny."},
        {"role": "assistant", "content": "Anything else?"},
    )
    assert found == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm. ",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "ls"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "image_url", "image_url": {"url": "data:x"}}],
        },
        {"role": "assistant", "content": "Sunny."},
        {"role": "assistant", "content": "Anything else?"},
    ]


def test_text_between_calls_and_their_outputs_stays_in_the_turn() -> None:
    [turn, _] = messages(
        {"role": "assistant", "content": "a"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    )
    assert turn["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert len(turn["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_asked_is_named(fields: Json, param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert error.code == "unsupported_parameter"
    assert param.split("[")[0].split(".")[0] in error.message
    assert json.loads(SURFACE.error(error))["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "Hi"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"stream": 1}, "stream"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"instructions": []}, "instructions"),
        ({"include": [{}]}, "include[0]"),
    ],
)
def test_what_is_wrong_is_named(fields: Json, param: str) -> None:
    assert refused(**fields).param == param


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def words(text: str) -> list[str]:
    return text.split()


WORDS = words("""
    message function_call function_call_output custom_tool_call custom_tool_call_output reasoning
    item_reference function custom allowed_tools grammar json_schema text auto user assistant system
    input_text output_text input_image input_file input_audio refusal summary_text chat1. chat1.W10=
""")
FIELDS = words("""
    type role content text call_id name arguments input output summary encrypted_content id image_url
    file_data file_id file_url tools mode format parameters schema strict effort verbosity refusal detail
""")
NEAR = st.recursive(
    SCALARS | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=15,
)
TOP = words("""
    input instructions tools tool_choice text reasoning max_output_tokens include stream stream_options
    store background truncation temperature metadata messages model parallel_tool_calls conversation
""")


def read_or_refused(body: Json) -> Json | ApiError:
    try:
        return SURFACE.read(body)
    except ApiError as error:
        return error


@settings(max_examples=150, deadline=None)
@given(
    body=st.dictionaries(st.sampled_from(TOP) | st.text(max_size=5), NEAR | ANYTHING, max_size=6)
    | st.fixed_dictionaries({"input": st.lists(st.dictionaries(st.sampled_from(FIELDS), NEAR, max_size=6))})
)
def test_whatever_comes_is_read_or_refused(body: Json) -> None:
    before = copy.deepcopy(body)
    check_reading(body)
    assert body == before


def check_reading(body: Json) -> None:
    result = read_or_refused(body)
    if isinstance(result, ApiError):
        assert (result.status, bool(result.param)) == (400, True)
    else:
        assert result["messages"]
        assert all(isinstance(message["role"], str) for message in result["messages"])


EVERYTHING: Json = {
    "model": "story",
    "instructions": "a",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "image_url": "a", "detail": "low"},
                {"type": "input_file", "file_data": "a", "file_id": "a", "filename": "a"},
                {"type": "input_audio", "input_audio": {"data": "a", "format": "mp3"}},
            ],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "a"}],
            "content": [{"type": "reasoning_text", "text": "a"}],
            "encrypted_content": "chat1.W10=",
        },
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "a"}]},
        {"type": "function_call", "call_id": "a", "name": "a", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "b", "name": "a", "input": "a"},
        {"role": "assistant", "content": "a"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "a"}]},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "a"},
    ],
    "tools": [
        {"type": "function", "name": "a", "description": "a", "parameters": {}, "strict": False},
        {"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "regex", "definition": "a"}},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "a"}]},
    "text": {
        "format": {"type": "json_schema", "name": "a", "schema": {}, "description": "a", "strict": True},
        "verbosity": "low",
    },
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "temperature": 1,
    "metadata": {"a": "a"},
    "max_output_tokens": 1,
    "store": False,
}
ODD: list[Any] = [
    None,
    True,
    0,
    -1.5,
    10**30,
    "",
    "message",
    "chat1.e30=",
    [],
    {},
    [[]],
    [None],
    ["a"],
    [{}],
    {"type": []},
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and under which key."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def test_a_request_with_anything_odd_anywhere_is_read_or_refused() -> None:
    body = copy.deepcopy(EVERYTHING)
    check_reading(body)
    assert "messages" in SURFACE.read(body)
    for holder, key in list(places(body)):
        good = holder[key]
        for odd in ODD:
            holder[key] = odd
            check_reading(body)
        holder[key] = good
    assert body == EVERYTHING


# -- whole answers


def test_a_text() -> None:
    token = {"token": "Once", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    response = answer({"content": "Once"}, logprobs={"content": [token]})
    assert response["id"] == "resp_int_1"
    assert response["status"] == "completed"
    assert response["incomplete_details"] is None
    [message] = response["output"]
    assert message["content"] == [
        {
            "type": "output_text",
            "text": "Once",
            "annotations": [],
            "logprobs": [{"token": "Once", "logprob": -0.1, "bytes": [], "top_logprobs": []}],
        }
    ]
    assert response["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 14,
    }


def test_the_request_is_repeated() -> None:
    request = {
        "instructions": "Be brief.",
        "tools": [WEATHER, {"type": "custom", "name": "run"}],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "metadata": {"a": "b"},
        "temperature": 1,
        "parallel_tool_calls": False,
        "service_tier": "auto",
    }
    response = answer({"content": "Once"}, request=request)
    assert {name: response[name] for name in request} == {
        **request,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
    }


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut_off_says_why(finish_reason: str, reason: str) -> None:
    response = answer({"content": "Once"}, finish_reason)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert response["output"][-1]["status"] == "incomplete"
    last = stream([chunk({"content": "Once"}), *ending(finish_reason)])[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"] == response


def test_signed_thinking_comes_back_as_it_was() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm, ", "signature": "s1"},
        {"type": "redacted_thinking", "data": "zzz"},
        {"type": "thinking", "thinking": "weather.", "signature": "s2"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    said = {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Hm, weather.",
        "thinking_blocks": blocks,
        "tool_calls": [call],
    }
    for request in ({}, {"reasoning": {"summary": "auto"}}):
        output = answer(copy.deepcopy(said), "tool_calls", request)["output"]
        assert messages(*output) == [said]
        assert "weather" not in output[0]["encrypted_content"]
        output[0][("summary" if request else "content")][0]["text"] = "Something else."
        assert "thinking_blocks" not in messages(*output)[0]


def test_a_seal_of_another_maker_is_left_alone() -> None:
    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    said = {"role": "assistant", "content": "a"}
    assert messages(reasoning, said) == [said]


def test_a_call_keeps_what_its_provider_adds() -> None:
    signature = {"google": {"thought_signature": "x"}}
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
        "extra_content": signature,
    }
    response = SURFACE.answer(completion({"content": None, "tool_calls": [call]}), asked())
    assert messages(*response["output"])[0]["tool_calls"] == [call]


@pytest.mark.parametrize("choices", [[], [{}], [{"message": None}], [{"message": {"content": [3, {}]}}]])
def test_an_answer_of_nothing_is_an_empty_response(choices: list[Json]) -> None:
    assert valid(SURFACE.answer({"choices": choices}, asked()))["output"] == []


# -- streams


def test_the_events_of_a_text() -> None:
    events = stream(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "On"}),
            chunk({"content": "ce"}),
            *ending(),
        ]
    )
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[-1]["response"] == answer({"content": "Once"})


def test_the_events_of_calls_that_come_in_turns() -> None:
    calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 1, "id": "c2", "type": "custom", "custom": {"name": "run", "input": "l"}},
        {"index": 0, "function": {"arguments": "{}"}},
        {"index": 1, "custom": {"input": "s"}},
    ]
    events = stream([*(chunk({"tool_calls": [call]}) for call in calls), *ending("tool_calls")])
    assert types(events)[2:-1] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    whole = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "ls"}},
    ]
    assert events[-1]["response"] == answer({"content": None, "tool_calls": whole}, "tool_calls")


def test_calls_that_all_have_the_same_index() -> None:
    calls = [
        {"index": 0, "id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for number in range(2)
    ]
    events = stream([chunk({"tool_calls": calls}), *ending("tool_calls")])
    assert [item["call_id"] for item in events[-1]["response"]["output"]] == ["c0", "c1"]


def test_reasoning_is_a_summary_where_one_was_asked_for() -> None:
    chunks = [chunk({"reasoning_content": "Hm."}), chunk({"content": "Once"}), *ending()]
    assert types(stream(chunks))[3:8] == [
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert types(stream(chunks, reasoning={"summary": "auto"}))[3:8] == [
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("status", "code"), [(502, "server_error"), (429, "rate_limit_exceeded"), (400, "invalid_prompt")]
)
def test_a_stream_that_breaks(begun: bool, status: int, code: str) -> None:
    writer = SURFACE.writer(asked())
    raw = writer.chunk(chunk({"content": "On"})) if begun else b""
    events = parsed(raw + writer.fail(ApiError(status, "It broke.", code="upstream_error")))
    assert types(events)[-2:] == ["error", "failed"]
    assert (events[-2]["code"], events[-2]["message"]) == ("upstream_error", "It broke.")
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": code, "message": "It broke."}
    assert [item["status"] for item in response["output"]] == (["incomplete"] if begun else [])


def test_a_stream_of_nothing_is_an_empty_response() -> None:
    assert types(parsed(SURFACE.writer(asked()).end())) == ["created", "in_progress", "completed"]


def test_text_that_a_guard_held_back_past_a_call_is_a_message_of_its_own() -> None:
    guard = AnswerGuard((LexicalDetector({"hate": ["bad apple"]}, []),), "default")
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"bad'}}
    rest = {"index": 0, "function": {"arguments": ' egg"}'}}
    chunks = [
        chunk({"content": "not bad"}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [rest]}),
        *ending("tool_calls"),
    ]
    passed = [one for given_chunk in chunks for one in guard.check_chunk(given_chunk)]
    events = stream(passed)
    output = events[-1]["response"]["output"]
    assert gathered(events) == output
    texts = [item["content"][0]["text"] for item in output if item["type"] == "message"]
    assert "".join(texts) == "not bad"
    assert [item["arguments"] for item in output if item["type"] == "function_call"] == ['{"a":"bad egg"}']


ODD_ANSWERS: list[Any] = [None, True, "a", [], [{}]]
FULL_TOKEN = {"token": "a", "logprob": -1.0, "bytes": [1]}
FULL_ANSWER: Json = {
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": {"content": [{**FULL_TOKEN, "top_logprobs": [FULL_TOKEN]}]},
            "message": {
                "role": "assistant",
                "content": "a",
                "refusal": "a",
                "reasoning_content": "a",
                "thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "a"}],
                "tool_calls": [
                    {"index": 0, "id": "a", "type": "function", "function": {"name": "a", "arguments": "{}"}},
                    {"index": 1, "id": "b", "type": "custom", "custom": {"name": "a", "input": "a"}},
                ],
            },
        }
    ],
    "service_tier": "default",
    "usage": USAGE,
}


def test_a_provider_that_writes_anything_odd_anywhere_gets_a_valid_response() -> None:
    payload = copy.deepcopy(FULL_ANSWER)
    [choice] = payload["choices"]
    for holder, key in list(places(payload))[2:]:
        good = holder[key]
        for odd in ODD_ANSWERS:
            holder[key] = odd
            valid(SURFACE.answer(copy.deepcopy(payload), asked()))
            piece = {**copy.deepcopy(payload), "choices": [{**choice, "delta": choice.get("message")}]}
            events = stream([piece, piece])
            assert gathered(events) == events[-1]["response"]["output"]
        holder[key] = good


TEXTS = st.text('ab \n"é漢😀', max_size=12)
TOKENS = st.builds(lambda text: {"token": text, "logprob": -0.5, "bytes": [1], "top_logprobs": []}, TEXTS)


@st.composite
def calls(draw: st.DrawFn) -> list[Json]:
    made: list[Json] = []
    for number in range(draw(st.integers(0, 3))):
        kind, field = draw(st.sampled_from([("function", "arguments"), ("custom", "input")]))
        text = draw(TEXTS | st.sampled_from(["{}", '{"a":{"b":1}}', '{"a":"}"}']))
        made.append({"id": f"c{number}", "type": kind, kind: {"name": f"f{number}", field: text}})
    return made


@st.composite
def blocks(draw: st.DrawFn) -> list[Json]:
    signed = st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "s"}, TEXTS)
    return draw(st.lists(signed | st.just({"type": "redacted_thinking", "data": "d"}), max_size=2))


@st.composite
def answers(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """A message, and the log probabilities of its text."""
    thinking = draw(blocks())
    thought = "".join(block.get("thinking", "") for block in thinking) if thinking else draw(TEXTS)
    fields = {"reasoning_content": thought, "content": draw(TEXTS), "refusal": draw(TEXTS)}
    message: Json = {name: text for name, text in fields.items() if text}
    made = draw(calls())
    tokens = draw(st.lists(TOKENS, max_size=3)) if "content" in message else []
    lists = {"thinking_blocks": thinking, "tool_calls": made}
    return {**message, **{name: value for name, value in lists.items() if value}}, tokens


Draw = Callable[[st.SearchStrategy[Any]], Any]


def cut(draw: Draw, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]


def deltas_of(draw: Draw, message: Json) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    for piece in cut(draw, message.get("reasoning_content", "")):
        yield {"reasoning_content": piece}
    for block in message.get("thinking_blocks", []):
        for piece in cut(draw, block.get("thinking", "")):
            if "thinking" in block:
                yield {"thinking_blocks": [{"type": "thinking", "thinking": piece, "signature": None}]}
        yield {"thinking_blocks": [{**block, "thinking": ""} if "thinking" in block else block]}
    for field in ("content", "refusal"):
        for piece in cut(draw, message.get(field, "")):
            yield {field: piece}
    made = [list(pieces_of(draw, index, call)) for index, call in enumerate(message.get("tool_calls", []))]
    in_turns = zip_longest(*made) if draw(st.booleans()) else made
    for call_piece in filter(None, chain.from_iterable(in_turns)):
        yield {"tool_calls": [call_piece]}


def pieces_of(draw: Draw, index: int, call: Json) -> Iterator[Json]:
    kind, field = call["type"], "arguments" if call["type"] == "function" else "input"
    first, *rest = cut(draw, call[kind][field])
    yield {"index": index, **call, kind: {**call[kind], field: first}}
    for piece in rest:
        yield {"index": index, kind: {field: piece}}


@settings(max_examples=150, deadline=None)
@given(
    given_answer=answers(),
    summarised=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
    data=st.data(),
)
def test_any_cut_gives_the_response_of_the_whole(
    given_answer: tuple[Json, list[Json]], summarised: bool, reason: str, data: st.DataObject
) -> None:
    message, tokens = given_answer
    request = {"reasoning": {"summary": "auto"}} if summarised else {}
    chunks = [chunk(delta) for delta in deltas_of(data.draw, message)]
    with_text = [one for one in chunks if one["choices"][0]["delta"].get("content")]
    if tokens:
        for number, token in enumerate(tokens):
            place = with_text[min(number, len(with_text) - 1)]["choices"][0]
            place.setdefault("logprobs", {"content": []})["content"].append(token)
    events = stream([*chunks, *ending(reason)], **request)
    whole = answer(copy.deepcopy(message), reason, request, logprobs={"content": tokens})
    assert events[-1]["response"] == whole
    assert gathered(events) == whole["output"]
    thinks = {"reasoning_content", "thinking_blocks"}
    if message.keys() - thinks:
        assert back_again(whole["output"]) == {name: message[name] for name in message if name != "refusal"}


def back_again(output: list[Json]) -> Json:
    """What a next request says of this answer; how it writes its content aside."""
    [message] = messages(*output)
    parts = message.pop("content") or ""
    del message["role"]
    texts = parts if isinstance(parts, str) else "".join(part.get("text", "") for part in parts)
    return {**message, **({"content": texts} if texts else {})}


# -- OpenAI's client


def client(chunks: list[Json] | None = None, whole: Json | None = None) -> openai.OpenAI:
    """OpenAI's client before a wire that ends in the surface."""

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        try:
            chat = SURFACE.read(body)
        except ApiError as error:
            return httpx.Response(error.status, content=SURFACE.error(error))
        of = Asked("int_1", body["model"], body, 1_700_000_000)
        if not chat.get("stream"):
            assert whole is not None
            return httpx.Response(200, json=SURFACE.answer(whole, of))
        writer = SURFACE.writer(of)
        raw = b"".join(writer.chunk(one) for one in chunks or []) + writer.end()
        return httpx.Response(200, content=raw, headers={"content-type": "text/event-stream"})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return openai.OpenAI(api_key="k", base_url="http://localhost/v1", http_client=http, max_retries=0)


class Weather(BaseModel):
    sky: str


def test_openais_client_reads_an_answer_and_sends_it_back() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    with client(
        whole=completion({"content": "Once", "reasoning_content": "Hm.", "tool_calls": [call]})
    ) as sdk:
        response = sdk.responses.create(model="story", input="Hi", tools=[WEATHER])  # type: ignore[list-item]  # a plain dict is one
    assert response.output_text == "Once"
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    [turn] = messages(*(item.model_dump(exclude_none=True) for item in response.output))
    assert turn == {"role": "assistant", "content": "Once", "reasoning_content": "Hm.", "tool_calls": [call]}


def test_openais_client_parses_a_stream() -> None:
    chunks = [
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": '{"sky":'}),
        chunk({"content": '"blue"}'}),
    ]
    with (
        client([*chunks, *ending()]) as sdk,
        sdk.responses.stream(model="story", input="Hi", text_format=Weather) as events,
    ):
        final = events.get_final_response()
    assert final.output_parsed == Weather(sky="blue")
    assert final.usage is not None
    assert final.usage.total_tokens == 14


def test_openais_client_reads_an_error() -> None:
    with client() as sdk, pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(model="story", input="Hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
