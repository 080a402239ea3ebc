"""The Messages surface, against the types of Anthropic's own client."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise
from typing import Any

import anthropic
import httpx2
import orjson
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.shared import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from gateway.errors import ApiError
from gateway.surface import Asked, Surface
from gateway.surfaces.messages import MessagesSurface
from gateway.surfaces.messages_speech import INVALID_INPUT

SURFACE: Surface = MessagesSurface()
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ANTHROPIC_REQUEST: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
OPENAI_REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
MARK = {"type": "ephemeral"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def asked(**body: Any) -> Asked:
    return Asked("int_1", "story-teller", body, 1_700_000_000)


def request(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "story-teller", "max_tokens": 100, "messages": list(messages), **more}


def words(names: str) -> list[str]:
    return names.split()


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def read(*messages: Any, **more: Any) -> dict[str, Any]:
    """What the surface reads, which its body must survive."""
    body = request(*messages, **more)
    before = orjson.dumps(body)
    result = SURFACE.read(body)
    assert orjson.dumps(body) == before
    return result


def refusal(*messages: Any, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        SURFACE.read(request(*messages, **more))
    assert caught.value.status == 400
    return caught.value


# -- requests


def test_a_plain_request_is_a_plain_chat_completion() -> None:
    body = read(
        {"role": "user", "content": "Hello"},
        system="Be kind.",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["END"],
        thinking={"type": "enabled", "budget_tokens": 2000},
        service_tier="standard_only",
        something_new={"a": 1},
    )
    assert body == {
        "model": "story-teller",
        "max_tokens": 100,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["END"],
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "service_tier": "default",
        "something_new": {"a": 1},
    }


def test_a_stream_asks_for_its_usage() -> None:
    assert read({"role": "user", "content": "Hi"}, stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in read({"role": "user", "content": "Hi"}, stream=False)


def test_metadata_is_split_into_the_user_and_the_rest() -> None:
    body = read(user(text("Hi")), metadata={"user_id": "u1", "conversation_id": "c1"})
    assert body["user"] == "u1"
    assert body["metadata"] == {"conversation_id": "c1"}
    assert "metadata" not in read(user(text("Hi")), metadata={"user_id": "u1"})
    assert "user" not in read(user(text("Hi")), metadata={"user_id": None})


def test_marks_for_the_cache_stay_on_parts_and_tools() -> None:
    body = read(
        user(text("Hi", cache_control=MARK)),
        assistant({"type": "tool_use", "id": "t1", "name": "f", "input": {}, "cache_control": MARK}),
        user({"type": "tool_result", "tool_use_id": "t1", "content": "ok", "cache_control": MARK}),
        system=[text("One"), text("Two", cache_control=MARK)],
        tools=[{"name": "f", "input_schema": SCHEMA, "cache_control": MARK}],
    )
    system, said, called, result = body["messages"]
    assert system["content"] == [text("One"), text("Two", cache_control=MARK)]
    assert said["content"] == [text("Hi", cache_control=MARK)]
    assert called["tool_calls"][0]["cache_control"] == MARK
    assert result["content"] == [text("ok", cache_control=MARK)]
    assert body["tools"][0]["cache_control"] == MARK


def test_images_and_documents_become_parts() -> None:
    png = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}
    body = read(
        user(
            {"type": "image", "source": png},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            {"type": "document", "source": pdf, "title": "Terms", "cache_control": MARK},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Words"}},
            {"type": "document", "source": {"type": "content", "content": [text("Inner")]}, "title": "T"},
            {"type": "search_result", "source": "s", "title": "t", "content": [text("Found")]},
        )
    )
    assert body["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {
            "type": "file",
            "file": {"filename": "Terms", "file_data": "data:application/pdf;base64,BBBB"},
            "cache_control": MARK,
        },
        text("Words"),
        text("T"),
        text("Inner"),
        text("t\ns"),
        text("Found"),
    ]


def test_results_of_tools_come_before_the_text_of_their_turn() -> None:
    body = read(
        {"role": "user", "content": "Weather?"},
        assistant(
            {"type": "thinking", "thinking": "Look it up.", "signature": "sig"},
            {"type": "redacted_thinking", "data": "xyz"},
            text("One moment."),
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Kiel"}},
            {"type": "tool_use", "id": "t2", "name": "map", "input": {}},
        ),
        user(
            text("Go on"),
            {"type": "tool_result", "tool_use_id": "t2", "content": [
                text("A map"), {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}]},
            {"type": "tool_result", "tool_use_id": "t1", "content": "no such city", "is_error": True},
            {"type": "tool_result", "tool_use_id": "t3"},
        ),
    )  # fmt: skip
    _, said, *results, more = body["messages"]
    assert said == {
        "role": "assistant",
        "content": "One moment.",
        "reasoning_content": "Look it up.",
        "thinking_blocks": [
            {"type": "thinking", "thinking": "Look it up.", "signature": "sig"},
            {"type": "redacted_thinking", "data": "xyz"},
        ],
        "tool_calls": [
            {
                "id": "t1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Kiel"}'},
            },
            {"id": "t2", "type": "function", "function": {"name": "map", "arguments": "{}"}},
        ],
    }
    assert results == [
        {"role": "tool", "tool_call_id": "t2", "content": "A map"},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: no such city"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
    ]
    assert more == {
        "role": "user",
        "content": [
            text("Go on"),
            text("Attached to the result of tool call t2:"),
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        ],
    }


def test_thoughts_without_a_signature_are_no_blocks_for_anthropic() -> None:
    (said,) = read(assistant({"type": "thinking", "thinking": "Hm", "signature": ""}, text("A")))["messages"]
    assert said == {"role": "assistant", "content": "A", "reasoning_content": "Hm"}


def test_tools_and_the_choice_among_them() -> None:
    tools = [
        {"type": "custom", "name": "f", "description": "d", "input_schema": SCHEMA, "strict": True},
        {"name": "g", "input_schema": SCHEMA, "defer_loading": True},
    ]
    body = read(user(text("Hi")), tools=tools, tool_choice={"type": "tool", "name": "f"})
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        },
        {"type": "function", "function": {"name": "g", "parameters": SCHEMA}, "defer_loading": True},
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(("kind", "word"), [("auto", "auto"), ("any", "required"), ("none", "none")])
def test_words_for_the_choice_of_tools(kind: str, word: str) -> None:
    choice = {"type": kind, "disable_parallel_tool_use": True}
    body = read(user(text("Hi")), tools=[{"name": "f", "input_schema": {}}], tool_choice=choice)
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (word, False)


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_schema_for_the_answer(field: str) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    config = {"output_config": {"format": form, "effort": "low", "new": 1}, "output_format": form}[field]
    body = read(user(text("Hi")), **{field: config})
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}
    if field == "output_config":
        assert body["reasoning_effort"] == "low"
        assert body["output_config"] == {"new": 1}
    else:
        assert field not in body


@pytest.mark.parametrize("kind", ["enabled", "disabled"])
def test_an_effort_does_not_overrule_what_is_said_of_thinking(kind: str) -> None:
    body = read(user(text("Hi")), thinking={"type": kind}, output_config={"effort": "low"})
    assert "reasoning_effort" not in body
    assert body["output_config"] == {"effort": "low"}
    assert read(user(text("Hi")), thinking=1, output_config={"effort": "low"})["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    "tool",
    words(
        "web_search_20250305 bash_20250124 computer_20250124 text_editor_20250728"
        " code_execution_20250825 memory_20250818 computer_toolset_20260801"
    ),
)
def test_anthropics_own_tools_are_refused_by_name(tool: str) -> None:
    error = refusal(user(text("Hi")), tools=[{"type": tool, "name": "x"}])
    assert tool in error.message
    assert error.param == "tools[0]"


@pytest.mark.parametrize("field", ["container", "mcp_servers"])
def test_what_only_anthropics_servers_have_is_refused_by_name(field: str) -> None:
    error = refusal(user(text("Hi")), **{field: [{"name": "x"}]})
    assert field in error.message
    assert field not in read(user(text("Hi")), **{field: None})


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "container_upload", "file_id": "f"}, "messages[0].content[1]"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "messages[0].content[1].source"),
        ({"type": "document", "source": {"type": "url", "url": "u"}}, "messages[0].content[1].source"),
        ({"type": "document", "source": 1}, "messages[0].content[1].source"),
        ({"type": "tool_use", "id": "a", "name": "b", "input": {}}, "messages[0].content[1]"),
        ({"type": "text"}, "messages[0].content[1].text"),
        ({"type": ["text"]}, "messages[0].content[1]"),
        ({"type": "tool_result", "content": "x"}, "messages[0].content[1].tool_use_id"),
        (
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_reference"}]},
            "messages[0].content[1].content[0]",
        ),
    ],
)
def test_what_cannot_be_read_is_named_by_its_place(block: dict[str, Any], param: str) -> None:
    error = refusal(user(text("Hi"), block))
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "10", True])
def test_the_length_of_an_answer_must_be_said(value: Any) -> None:
    assert refusal(user(text("Hi")), max_tokens=value).param == "max_tokens"


WORDS = st.sampled_from(
    words(
        "type text role user assistant system content source tool_use tool_result thinking "
        "redacted_thinking signature data id name input tool_use_id image base64 url document "
        "file tools messages search_result json_schema schema"
    )
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=25,
)
BLOCK_TYPES = st.sampled_from(
    words(
        "text image document search_result tool_use tool_result thinking redacted_thinking "
        "content base64 url file"
    )
)
BLOCKS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(lambda kind, rest: {**rest, "type": kind}, BLOCK_TYPES, st.dictionaries(WORDS, inner))
    ),
    max_leaves=15,
)
FIELDS = st.sampled_from(
    words(
        "max_tokens stop_sequences stream service_tier metadata tools tool_choice output_format "
        "output_config system messages container mcp_servers thinking other"
    )
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": BLOCKS})
)


@given(st.dictionaries(FIELDS, JSON), MESSAGES | JSON)
def test_whatever_arrives_is_read_or_refused(fields: dict[str, Any], messages: Any) -> None:
    with contextlib.suppress(ApiError):
        SURFACE.read({"max_tokens": 5, "messages": messages, **fields})


NAMES = st.sampled_from(["weather", "map", "clock"])
INPUTS = st.dictionaries(
    st.text(max_size=4), st.integers(-9, 9) | st.text(max_size=6) | st.none(), max_size=3
)
SAID = st.text(min_size=1, max_size=30)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns of an assistant that calls tools, each followed by what the tools gave."""
    messages: list[dict[str, Any]] = [user(text(draw(SAID)))]
    for turn in range(draw(st.integers(1, 4))):
        calls = [
            {"type": "tool_use", "id": f"t{turn}_{place}", "name": draw(NAMES), "input": draw(INPUTS)}
            for place in range(draw(st.integers(1, 3)))
        ]
        thought = {"type": "thinking", "thinking": draw(SAID), "signature": "sig"}
        said = [text(words) for words in draw(st.lists(SAID, max_size=1))]
        messages.append(assistant(*([thought] if draw(st.booleans()) else []), *said, *calls))
        results = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": draw(SAID)} for call in calls
        ]
        messages.append(user(*results, *(text(words) for words in draw(st.lists(SAID, max_size=1)))))
    return messages


@given(conversations())
def test_conversations_with_tools_survive(conversation: list[dict[str, Any]]) -> None:
    """An assistant's turn, answered by a model as the surface read it, is the turn again."""
    ANTHROPIC_REQUEST.validate_python(request(*conversation))
    body = read(*conversation)
    OPENAI_REQUEST.validate_python(body)
    chat = body["messages"]
    turns = [message["content"] for message in conversation if message["role"] == "assistant"]
    answers = [
        SURFACE.answer(completion(message), asked()) for message in chat if message["role"] == "assistant"
    ]
    assert [answer["content"] for answer in answers] == turns
    results = [
        (block["tool_use_id"], block["content"])
        for message in conversation
        for block in message["content"]
        if block["type"] == "tool_result"
    ]
    tools = [message for message in chat if message["role"] == "tool"]
    assert [(message["tool_call_id"], message["content"]) for message in tools] == results
    for before, message in pairwise(chat):
        assert message["role"] != "tool" or before["role"] in ("assistant", "tool")


# -- answers


def completion(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage, **more}


def call(name: str, arguments: str, index: int = 0, call_id: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id or f"call_{index}", "type": "function", "function": function}


def answer(payload: dict[str, Any], **body: Any) -> Message:
    written = SURFACE.answer(payload, asked(**body))
    message = Message.model_validate_json(orjson.dumps(written), strict=True)
    assert message.model_dump(exclude_unset=True, mode="json") == written
    return message


def test_an_answer_is_a_message() -> None:
    written = SURFACE.answer(completion({"role": "assistant", "content": "Hello"}), asked())
    assert written == {
        "id": "msg_int_1",
        "type": "message",
        "role": "assistant",
        "model": "story-teller",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }
    answer(completion({"role": "assistant", "content": "Hello"}))


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("tool_calls", "end_turn"),
        ("a new word", "end_turn"),
        (None, "end_turn"),
    ],
)
def test_why_an_answer_stopped(finish: str | None, reason: str) -> None:
    assert answer(completion({"content": "Hi"}, finish)).stop_reason == reason


@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_an_answer_with_calls_stopped_for_them(finish: str) -> None:
    message = answer(completion({"content": None, "tool_calls": [call("f", '{"a":1}')]}, finish))
    assert message.stop_reason == "tool_use"
    assert message.content[0].to_dict() == {
        "type": "tool_use",
        "id": "call_0",
        "name": "f",
        "input": {"a": 1},
    }


def test_a_stop_sequence_is_named_if_it_is_known() -> None:
    payload = completion({"content": "Hi"})
    payload["choices"][0]["stop_reason"] = "END"
    message = answer(payload, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert answer(payload).stop_reason == "end_turn"


def test_a_refusal_in_words() -> None:
    message = answer(completion({"content": None, "refusal": "I will not."}))
    assert message.stop_reason == "refusal"
    assert message.content[0].to_dict() == text("I will not.")


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "nonsense", '{"a":' * 300 + "1" + "}" * 300])
def test_arguments_that_are_no_object_are_kept_as_they_are(arguments: str) -> None:
    message = answer(completion({"tool_calls": [call("f", arguments)]}))
    assert message.content[0].to_dict()["input"] == {INVALID_INPUT: arguments}


def test_a_call_without_arguments_or_an_id() -> None:
    message = answer(completion({"tool_calls": [{"function": {"name": "f"}}, {"function": {"name": "g"}}]}))
    assert [block.to_dict() for block in message.content] == [
        {"type": "tool_use", "id": f"toolu_int_1_{number}", "name": name, "input": {}}
        for number, name in enumerate("fg", 1)
    ]


def test_thoughts_come_with_their_signatures() -> None:
    thoughts = [
        {"type": "thinking", "thinking": "One", "signature": "s1"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "thinking", "thinking": "Two", "signature": "s2"},
    ]
    for reasoning in ({"reasoning_content": "OneTwo"}, {}):
        message = answer(completion({"content": "Hi", "thinking_blocks": thoughts, **reasoning}))
        assert [block.to_dict() for block in message.content] == [*thoughts, text("Hi")]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_of_other_models_have_no_signature(field: str) -> None:
    message = answer(completion({"content": "Hi", field: "Hm"}))
    assert message.content[0].to_dict() == {"type": "thinking", "thinking": "Hm", "signature": ""}


def test_a_second_copy_of_a_thought_says_no_more_than_the_first() -> None:
    """The guard may have shortened the reasoning; the blocks still hold all of it."""
    thoughts = [{"type": "thinking", "thinking": "my secret", "signature": "s"}]
    message = answer(completion({"content": "Hi", "reasoning_content": "my", "thinking_blocks": thoughts}))
    assert message.content[0].to_dict() == {"type": "thinking", "thinking": "my", "signature": "s"}


def test_parts_of_thinking_and_text() -> None:
    parts = [{"type": "thinking", "thinking": [text("Hm")]}, text("Hi")]
    message = answer(completion({"content": parts}))
    assert [block.type for block in message.content] == ["thinking", "text"]


def test_usage_leaves_the_cache_out_of_the_input() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 60},
        "cache_creation_input_tokens": 30,
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    written = answer(completion({"content": "Hi"}, usage=usage)).usage
    assert written.to_dict() == {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 30,
        "output_tokens_details": {"thinking_tokens": 7},
    }


ODD = st.dictionaries(
    st.sampled_from(["content", "reasoning_content", "thinking_blocks", "tool_calls", "refusal"]), JSON
)


@given(st.lists(ODD, max_size=4), JSON)
def test_whatever_a_model_says_can_be_written(deltas: list[dict[str, Any]], usage: Any) -> None:
    for delta in deltas:
        answer(completion(delta, usage=usage))
    accumulate([*map(chunk, deltas), {"choices": [], "usage": usage}], check_input=False)


# -- streams


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def parse(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream; their names must be those in their data."""
    events = []
    for event in data.decode().split("\n\n")[:-1]:
        name, payload = event.split("\n")
        events.append(orjson.loads(payload.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def events_of(chunks: list[dict[str, Any]], **body: Any) -> list[dict[str, Any]]:
    writer = SURFACE.writer(asked(**body))
    return parse(b"".join([*map(writer.chunk, chunks), writer.end()]))


def accumulate(chunks: list[dict[str, Any]], check_input: bool = True, **body: Any) -> dict[str, Any]:
    """The message that Anthropic's client makes of a stream, once the order of its events is right."""
    events = events_of(chunks, **body)
    check_order(events)
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        typed = EVENT.validate_python(event, strict=True)
        if check_input or event.get("delta", {}).get("type") != "input_json_delta":
            snapshot = accumulate_event(event=typed, current_snapshot=snapshot, json_bufs=buffers)
    message: dict[str, Any] = snapshot.to_dict()
    assert message.pop("stop_details") is None  # the client fills it in
    return message


def check_order(events: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, is_open = 0, False
    for event in events[1:-2]:
        assert event["index"] == index
        match event["type"]:
            case "content_block_start":
                assert not is_open
                is_open = True
            case "content_block_delta":
                assert is_open
            case "content_block_stop":
                assert is_open
                index, is_open = index + 1, False
    assert not is_open


def test_the_events_of_a_short_stream() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    written = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo\n\u2028"}),
        chunk({}, "stop"),
        {"choices": [], "usage": usage},
    ]
    assert events_of(chunks) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_int_1",
                "type": "message",
                "role": "assistant",
                "model": "story-teller",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0, **written},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": text("")},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo\n\u2028"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 10, "output_tokens": 2, **written},
        },
        {"type": "message_stop"},
    ]


def test_the_first_chunk_opens_the_stream_at_once() -> None:
    writer = SURFACE.writer(asked())
    assert [event["type"] for event in parse(writer.chunk(chunk({"role": "assistant"})))] == ["message_start"]
    assert len(parse(writer.chunk(chunk({"content": "A"})))) == 2
    assert len(parse(writer.chunk(chunk({"content": "B"})))) == 1


def test_a_stream_without_chunks_is_an_empty_message() -> None:
    assert accumulate([])["content"] == []


def test_a_second_call_waits_until_the_first_is_whole() -> None:
    writer = SURFACE.writer(asked())
    writer.chunk(chunk({"tool_calls": [call("f", '{"a":', 0)]}))
    assert writer.chunk(chunk({"tool_calls": [call("g", '{"b":', 1)]})) == b""
    assert writer.chunk(chunk({"content": "By the way"})) == b""
    first = parse(writer.chunk(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})))
    assert [event["type"] for event in first] == [
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]
    second = parse(writer.chunk(chunk({"tool_calls": [{"index": 1, "function": {"arguments": "2}"}}]})))
    assert second[-1]["delta"] == {"type": "text_delta", "text": "By the way"}


def test_calls_that_share_a_number_are_told_apart() -> None:
    chunks = [
        chunk({"tool_calls": [call("f", '{"a":1}', 0, "one")]}),
        chunk({"tool_calls": [call("f", '{"a":2}', 0, "two")]}),
    ]
    assert [block["input"] for block in accumulate(chunks)["content"]] == [{"a": 1}, {"a": 2}]


def test_a_call_waits_for_its_name() -> None:
    chunks = [
        chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
    ]
    (block,) = accumulate(chunks)["content"]
    assert block["name"] == "f"


def test_thinking_in_pieces_as_litellm_sends_it() -> None:
    def thinking(words: str, **more: Any) -> dict[str, Any]:
        block = {"type": "thinking", "thinking": words, **more}
        return chunk({"reasoning_content": words, "thinking_blocks": [block]})

    redacted = [{"type": "redacted_thinking", "data": "xyz"}]
    chunks = [
        thinking("Let "),
        thinking("me"),
        thinking("", signature="s1"),
        chunk({"thinking_blocks": redacted}),
    ]
    message = accumulate([*chunks, thinking("Hm"), thinking("", signature="s2"), chunk({"content": "Hi"})])
    assert message["content"] == [
        {"type": "thinking", "thinking": "Let me", "signature": "s1"},
        *redacted,
        {"type": "thinking", "thinking": "Hm", "signature": "s2"},
        text("Hi"),
    ]


def test_a_thought_that_the_guard_holds_back_does_not_leave_by_its_block() -> None:
    block = {"type": "thinking", "thinking": "my secret"}
    chunks = [
        chunk({"reasoning_content": "my ", "thinking_blocks": [block]}),
        chunk({"reasoning_content": "", "thinking_blocks": [block]}),
        chunk({"thinking_blocks": [block]}),
    ]
    assert accumulate(chunks)["content"][0]["thinking"] == "my "


def test_other_choices_are_left_out() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "B"}, "finish_reason": "length"}]}
    message = accumulate([chunk({"content": "A"}), other, chunk({}, "stop")])
    assert (message["content"], message["stop_reason"]) == ([text("A")], "end_turn")


def test_the_end_of_a_stream_that_was_blocked() -> None:
    message = accumulate([chunk({"content": "A"}), chunk({}, "content_filter")])
    assert message["stop_reason"] == "refusal"


@pytest.mark.parametrize("chunks", [[], [chunk({"content": "A"})]])
def test_a_stream_that_breaks_ends_with_an_error(chunks: list[dict[str, Any]]) -> None:
    writer = SURFACE.writer(asked())
    for piece in chunks:
        writer.chunk(piece)
    (event,) = parse(writer.fail(ApiError(502, "It broke.", "upstream_error")))
    assert event["error"] == {"type": "api_error", "message": "It broke."}


@st.composite
def streamed(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole answer, and chunks that bring it cut anywhere, with the calls mixed at will."""
    reasoning, content = draw(st.none() | SAID), draw(st.none() | SAID)
    inputs = draw(st.lists(INPUTS, max_size=4))
    calls = [call(draw(NAMES), orjson.dumps(value).decode(), place) for place, value in enumerate(inputs)]
    thought = {"type": "thinking", "thinking": reasoning, "signature": "sig"}
    signed = {"thinking_blocks": [thought]} if reasoning and draw(st.booleans()) else {}
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning, **signed}
    if calls:
        message["tool_calls"] = calls
    deltas = [{"reasoning_content": piece} for piece in draw(cuts(reasoning or ""))]
    if signed:
        deltas.append({"thinking_blocks": [{**thought, "thinking": ""}], "reasoning_content": ""})
    deltas += [{"content": piece} for piece in draw(cuts(content or ""))]
    deltas += mixed(draw, [call_deltas(draw, entry) for entry in calls])
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    last = [{"choices": [], "usage": usage}] if draw(st.booleans()) else []
    ending = chunk({}, finish) if last else chunk({}, finish, usage=usage)
    return completion(message, finish, usage=usage), [*map(chunk, deltas), ending, *last]


@st.composite
def cuts(draw: st.DrawFn, words: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(words)), max_size=5)))
    return [words[start:end] for start, end in zip([0, *places], [*places, len(words)], strict=True)]


def call_deltas(draw: st.DrawFn, entry: dict[str, Any]) -> list[dict[str, Any]]:
    index, function = entry["index"], entry["function"]
    first = {**entry, "function": {**function, "arguments": ""}}
    pieces = draw(cuts(function["arguments"]))
    return [first, *({"index": index, "function": {"arguments": piece}} for piece in pieces)]


def mixed(draw: st.DrawFn, queues: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The pieces of all calls. The calls begin in their order; after that any may go on."""
    deltas = [{"tool_calls": [queue.pop(0)]} for queue in queues] if draw(st.booleans()) else []
    if not deltas:
        return [{"tool_calls": [piece]} for queue in queues for piece in queue]
    while queues := [queue for queue in queues if queue]:
        deltas.append({"tool_calls": [draw(st.sampled_from(queues)).pop(0)]})
    return deltas


@given(streamed())
def test_a_stream_says_what_the_whole_answer_says(
    case: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    payload, chunks = case
    assert accumulate(chunks) == SURFACE.answer(payload, asked())


def client_of(body: bytes, kind: str) -> anthropic.Anthropic:
    """Anthropic's client before a server that answers this."""
    headers = {"content-type": kind}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body, headers=headers))
    return anthropic.Anthropic(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport))


def test_anthropics_client_reads_a_stream() -> None:
    writer = SURFACE.writer(asked())
    chunks = [
        chunk({"content": "Hi"}),
        chunk({"tool_calls": [call("f", '{"a":1}')]}),
        chunk({}, "tool_calls"),
    ]
    body = b"".join([*map(writer.chunk, chunks), writer.end()])
    with (
        client_of(body, "text/event-stream") as client,
        client.messages.stream(model="m", max_tokens=9, messages=[]) as stream,
    ):
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.stop_reason == "tool_use"


def test_anthropics_client_reads_that_a_stream_broke() -> None:
    writer = SURFACE.writer(asked())
    body = writer.chunk(chunk({"content": "Hi"})) + writer.fail(ApiError(503, "Full.", "overloaded_error"))
    with (
        client_of(body, "text/event-stream") as client,
        client.messages.stream(model="m", max_tokens=9, messages=[]) as stream,
        pytest.raises(anthropic.APIStatusError, match=r"Full\."),
    ):
        stream.get_final_message()


def test_a_chunk_costs_little() -> None:
    writer = SURFACE.writer(asked())
    chunks = [chunk({"content": " word"}) for _ in range(10_000)]
    start = time.perf_counter()
    for piece in chunks:
        writer.chunk(piece)
    # About two microseconds each; the limit leaves room for a busy machine.
    assert (time.perf_counter() - start) / len(chunks) < 50e-6


# -- errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_names(status: int, kind: str) -> None:
    body = SURFACE.error(ApiError(status, "No.", "whatever"))
    assert ErrorResponse.model_validate_json(body, strict=True).error.to_dict() == {
        "type": kind,
        "message": "No.",
    }


def test_a_request_that_is_too_large() -> None:
    assert orjson.loads(SURFACE.error(ApiError(413, "Too large.")))["error"]["type"] == "request_too_large"
