"""What a provider gets in place of what the client sent."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from gateway.surfaces.messages import MessagesSurface
from gateway.upstream_request import request_for
from storage.routing import DeploymentSpec

OPENAI: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
KNOWN = CompletionCreateParamsNonStreaming.__annotations__.keys()
MARK = {"type": "ephemeral"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
ASKED: dict[str, Any] = {
    "model": "story-teller",
    "max_tokens": 100,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "max"},
    "top_k": 5,
    "metadata": {"user_id": "u1", "topic": "sea"},
    "system": [{"type": "text", "text": "Be brief.", "cache_control": MARK}],
    "tools": [
        {"name": "look", "input_schema": {"type": "object"}, "cache_control": MARK, "defer_loading": True}
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": MARK}]},
        {
            "role": "assistant",
            "content": [
                THOUGHT,
                {"type": "tool_use", "id": "c1", "name": "look", "input": {}, "cache_control": MARK},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "sun", "cache_control": MARK},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ],
        },
    ],
}
CHAT = MessagesSurface().read(ASKED)


def deployment(**parameters: Any) -> DeploymentSpec:
    return DeploymentSpec(
        id="dep_1",
        provider="p",
        model="m",
        parameters=parameters,
        system_prompt=None,
        guard_profile="default",
        price_input=Decimal(0),
        price_output=Decimal(0),
    )


def sent(kind: str, surface: str, body: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    before = copy.deepcopy(body)
    request = request_for(body, deployment(**parameters), stream=False, kind=kind, surface=surface)
    assert body == before
    return request


def test_a_strict_provider_gets_nothing_that_only_anthropic_knows() -> None:
    request = sent("openai", "messages", CHAT)
    assert request.keys() <= KNOWN
    OPENAI.validate_python(request)
    for foreign in ("cache_control", "thinking", "reasoning_content", "defer_loading", "top_k", "metadata"):
        assert foreign not in str(request)
    assert (request["max_completion_tokens"], request["reasoning_effort"]) == (100, "high")
    assert "max_tokens" not in request
    assert request["user"] == "u1"
    assert request["tools"] == [
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    ]
    roles = [message["role"] for message in request["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user"]
    assert request["messages"][2]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ]
    assert request["messages"][4]["content"][0]["type"] == "image_url"


def test_thinking_that_is_switched_off_asks_for_no_effort() -> None:
    body = MessagesSurface().read({**ASKED, "thinking": {"type": "disabled"}})
    assert "reasoning_effort" not in sent("openai", "messages", body)


def test_metadata_stays_where_something_is_stored() -> None:
    assert sent("openai", "responses", {**CHAT, "store": True})["metadata"] == {"topic": "sea"}


def test_what_the_operator_says_of_a_deployment_stays() -> None:
    assert sent("openai", "messages", CHAT, verbosity="low", top_k=3)["top_k"] == 3


@pytest.mark.parametrize(
    ("kind", "surface"), [("openai", "chat"), ("openai_compatible", "messages"), ("anthropic", "messages")]
)
def test_others_get_everything(kind: str, surface: str) -> None:
    assert sent(kind, surface, CHAT) == {**CHAT, "model": "m"}
