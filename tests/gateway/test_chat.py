"""The gateway as an application meets it: through the official SDK, plain and streamed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import openai
import pytest

from storage import identities
from storage.pseudonyms import pseudonym
from storage.vocabulary import AssignmentUnit
from tests.gateway.conftest import PSEUDONYM_KEY, USE_CASE, Fleet, Running, until
from tests.gateway.fake_upstream import FakeUpstream

MESSAGES: Any = [{"role": "user", "content": "tell me of the sea"}]


async def test_a_plain_answer_names_the_use_case_and_who_answered(gateway: Running, fleet: Fleet) -> None:
    raw = await gateway.client().chat.completions.with_raw_response.create(
        model=USE_CASE, messages=MESSAGES, user="u1", metadata={"conversation_id": "c1"}, temperature=0.3
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "tell me of the sea"
    assert answer.model == USE_CASE
    assert answer.usage is not None
    assert answer.usage.total_tokens == 15
    assert answer.model_extra == {"x_unknown": {"kept": True}}
    headers = raw.headers
    assert headers["x-meta-agent-variant"] == "stable"
    assert Decimal(headers["x-meta-agent-cost-usd"]) == Decimal("0.00002")
    assert float(headers["x-meta-agent-overhead-ms"]) >= 0
    row = await fleet.one_row()
    assert row["id"] == headers["x-request-id"] == answer.id.removeprefix("chatcmpl-")
    assert row["release_id"] == headers["x-meta-agent-release"]
    assert row["deployment_id"] == headers["x-meta-agent-deployment"]
    expected = {
        "kind": "live",
        "status": "ok",
        "arm": "stable",
        "unit": "c1",
        "user_id": pseudonym(PSEUDONYM_KEY, "u1"),
        "conversation_id": "c1",
        "key_id": "app",
        "weight": 0.0,
        "route_revision": 1,
        "stream": False,
        "response_text": "tell me of the sea",
        "finish_reason": "stop",
        "http_status": 200,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "usage_estimated": False,
        "findings": [],
    }
    assert {name: row[name] for name in expected} == expected
    assert row["request"]["temperature"] == 0.3
    assert row["latency_ms"] >= row["overhead_ms"] >= 0


async def test_the_provider_gets_the_deployment_not_the_use_case(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream
) -> None:
    release = await fleet.release(
        "echo", parameters={"temperature": 0.9, "top_p": 0.5}, system_prompt="You tell stories."
    )
    await gateway.serves(await fleet.route(release))
    await gateway.client().chat.completions.create(
        model=USE_CASE,
        messages=MESSAGES,
        temperature=0.1,
        metadata={"conversation_id": "c1", "topic": "sea"},
        extra_body={"x_own": [1, {"two": 2}]},
    )
    sent = upstream.requests[-1]
    assert sent["model"] == "echo"
    assert (sent["temperature"], sent["top_p"]) == (0.1, 0.5)
    assert sent["messages"][0] == {"role": "system", "content": "You tell stories."}
    assert sent["metadata"] == {"topic": "sea"}
    assert sent["x_own"] == [1, {"two": 2}]
    assert "authorization: Bearer sk-of-the-provider" in upstream.heads[-1]


async def test_a_streamed_answer_passes_piece_by_piece(gateway: Running, fleet: Fleet) -> None:
    stream = await gateway.client().chat.completions.create(model=USE_CASE, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    words = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(words) == "tell me of the sea "
    assert len([word for word in words if word]) == 5
    assert {chunk.model for chunk in chunks} == {USE_CASE}
    assert all(chunk.usage is None and chunk.choices for chunk in chunks), "nobody asked for usage"
    assert chunks[-1].choices[0].finish_reason == "stop"
    row = await fleet.one_row()
    assert f"chatcmpl-{row['id']}" == chunks[0].id
    assert (row["status"], row["stream"], row["prompt_tokens"]) == ("ok", True, 10)
    assert row["response_text"] == "tell me of the sea "
    assert 0 < row["ttft_ms"] <= row["latency_ms"]


async def test_usage_is_streamed_to_those_who_ask(gateway: Running) -> None:
    stream = await gateway.client().chat.completions.create(
        model=USE_CASE, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [15]
    assert chunks[-1].choices == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_pass_through(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream, streamed: bool
) -> None:
    await gateway.serves(await fleet.route(await fleet.release("tools")))
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    completions = gateway.client().chat.completions
    if streamed:
        stream = await completions.create(model=USE_CASE, messages=MESSAGES, tools=tools, stream=True)
        choices: Any = [chunk.choices[0] async for chunk in stream]
        functions = [each.function for c in choices for each in c.delta.tool_calls or ()]
        finish = choices[-1].finish_reason
    else:
        answer: Any = await completions.create(model=USE_CASE, messages=MESSAGES, tools=tools)
        functions = [each.function for each in answer.choices[0].message.tool_calls]
        finish = answer.choices[0].finish_reason
    assert (functions[0].name, finish) == ("look", "tool_calls")
    assert "".join(function.arguments for function in functions) == '{"at": "sky"}'
    assert upstream.requests[-1]["tools"] == tools
    assert '{"at": "sky"}' in (await fleet.one_row())["response_text"]


async def test_usage_is_estimated_where_the_provider_is_silent(gateway: Running, fleet: Fleet) -> None:
    await gateway.serves(await fleet.route(await fleet.release("no-usage")))
    await gateway.client().chat.completions.create(model=USE_CASE, messages=MESSAGES)
    row = await fleet.one_row()
    assert (row["usage_estimated"], row["prompt_tokens"], row["completion_tokens"]) == (True, 4, 4)


async def test_a_conversation_keeps_its_arm_and_arms_share_by_weight(gateway: Running, fleet: Fleet) -> None:
    stable, candidate = await fleet.release("say:old"), await fleet.release("say:new")
    await gateway.serves(await fleet.route(stable, (candidate, 0.5), rollout_id="ro_1"))
    seen: dict[str, set[str | None]] = {}
    for _ in range(2):
        for number in range(30):
            answer = await gateway.client().chat.completions.create(
                model=USE_CASE, messages=MESSAGES, metadata={"conversation_id": f"c{number}"}
            )
            seen.setdefault(f"c{number}", set()).add(answer.choices[0].message.content)
    assert all(len(answers) == 1 for answers in seen.values())
    assert 5 < sum(answers == {"new"} for answers in seen.values()) < 25

    async def all_logged() -> list[dict[str, Any]]:
        rows = await fleet.rows()
        return rows if len(rows) == 60 else []

    for row in await until(all_logged):
        assert (row["rollout_id"], row["weight"]) == ("ro_1", 0.5)
        assert row["arm"] == ("candidate" if seen[row["unit"]] == {"new"} else "stable")


async def test_units_fall_back_to_user_and_request(gateway: Running, fleet: Fleet) -> None:
    create = gateway.client().chat.completions.create
    await create(model=USE_CASE, messages=MESSAGES, user="u1")
    await create(model=USE_CASE, messages=MESSAGES)
    rows = await until(lambda: _rows(fleet, 2))
    assert [row["unit"] for row in rows] == [pseudonym(PSEUDONYM_KEY, "u1"), rows[1]["id"]]
    release = await fleet.release("echo")
    await gateway.serves(await fleet.route(release, unit=AssignmentUnit.USER))
    await create(model=USE_CASE, messages=MESSAGES, safety_identifier="s1", metadata={"conversation_id": "c"})
    assert (await until(lambda: _rows(fleet, 3)))[2]["unit"] == pseudonym(PSEUDONYM_KEY, "s1")


async def _rows(fleet: Fleet, count: int) -> list[dict[str, Any]]:
    rows = await fleet.rows()
    return rows if len(rows) == count else []


async def test_a_release_can_be_pinned_by_those_who_may(gateway: Running, fleet: Fleet) -> None:
    stable, other = await fleet.release("say:old"), await fleet.release("say:new")
    token = await fleet.key("judge", ("pin", "evaluate"))
    await gateway.serves(await fleet.route(stable, (stable, 1.0)))
    model = f"{USE_CASE}@{other}"
    raw = await gateway.client(token).chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, extra_headers={"x-meta-agent-purpose": "evaluation"}
    )
    answer = raw.parse()
    assert (answer.model, answer.choices[0].message.content) == (model, "new")
    assert raw.headers["x-meta-agent-variant"] == "pinned"
    row = await fleet.one_row()
    assert (row["kind"], row["arm"], row["release_id"]) == ("evaluation", None, other)
    await gateway.client(token).chat.completions.create(model=model, messages=MESSAGES)
    assert (await fleet.one_row("kind = 'live'"))["arm"] is None
    with pytest.raises(openai.PermissionDeniedError, match="scope 'pin'"):
        await gateway.client().chat.completions.create(model=model, messages=MESSAGES)
    assert (await fleet.one_row("status = 'rejected'"))["error_type"] == "missing_scope"
    with pytest.raises(openai.NotFoundError, match="no release"):
        await gateway.client(token).chat.completions.create(model=f"{USE_CASE}@rel_x", messages=MESSAGES)


async def test_models_lists_the_use_cases_of_the_key(gateway: Running, fleet: Fleet) -> None:
    assert [model.id async for model in gateway.client().models.list()] == [USE_CASE]
    assert (await gateway.client().models.retrieve(USE_CASE)).owned_by == "meta-agent"
    token = await fleet.key("other", use_cases=["essay-writer"])
    await gateway.serves(await fleet.route(await fleet.release("say:x")))
    assert [model.id async for model in gateway.client(token).models.list()] == []
    with pytest.raises(openai.NotFoundError, match="none yet"):
        await gateway.client(token).models.retrieve(USE_CASE)


async def test_shadow_copies_follow_the_answer(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream
) -> None:
    stable, shadow = await fleet.release("echo"), await fleet.release("sleep:0.2")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0), rollout_id="ro_1"))
    stream = await gateway.client().chat.completions.create(
        model=USE_CASE, messages=MESSAGES, stream=True, metadata={"conversation_id": "c1"}
    )
    assert [chunk async for chunk in stream]
    copy = await fleet.one_row("kind = 'shadow'")
    live = await fleet.one_row("kind = 'live'")
    assert (copy["shadow_of"], copy["arm"], copy["unit"]) == (live["id"], "shadow", "c1")
    assert (copy["status"], copy["stream"], copy["rollout_id"]) == ("ok", False, "ro_1")
    assert live["latency_ms"] < copy["latency_ms"]
    assert "stream" not in upstream.requests[-1]


async def test_shadow_copies_are_bounded_and_the_rest_counted(gateway: Running, fleet: Fleet) -> None:
    stable, shadow = await fleet.release("echo"), await fleet.release("hang")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0)))
    for _ in range(10):
        await gateway.client().chat.completions.create(model=USE_CASE, messages=MESSAGES)
    dropped = f'meta_agent_shadow_dropped_total{{use_case="{USE_CASE}",reason="no_room"}} 2'
    assert dropped in (await gateway.http.get("/metrics")).text


async def test_feedback_reaches_the_interaction(gateway: Running, fleet: Fleet) -> None:
    answer = await gateway.client().chat.completions.create(model=USE_CASE, messages=MESSAGES)
    headers = {"authorization": f"Bearer {gateway.token}"}
    for value in (True, 0.5, "good"):
        body = {"response_id": answer.id, "name": "thumb", "value": value, "comment": "nice"}
        assert (await gateway.http.post("/v1/feedback", json=body, headers=headers)).status_code == 202

    async def stored() -> list[Any]:
        from sqlalchemy import text

        async with fleet.db.connection() as connection:
            rows = await connection.execute(text("select interaction_id, value from feedback order by at"))
            found = list(rows)
        return found if len(found) == 3 else []

    rows = await until(stored)
    assert {row.interaction_id for row in rows} == {answer.id.removeprefix("chatcmpl-")}
    assert [row.value for row in rows] == [True, 0.5, "good"]
    for body in ({}, {"interaction_id": "int_x", "name": "thumb", "value": 1}):
        refused = await gateway.http.post("/v1/feedback", json=body, headers=headers)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "response_id"


async def test_a_key_of_the_control_plane_calls_no_model(gateway: Running, fleet: Fleet) -> None:
    async with fleet.db.transaction() as connection:
        key = await identities.ensure_key(
            connection, key_id="console", secret="s" * 48, name="console", scopes=["read", "admin"]
        )
    client = gateway.client().with_options(api_key=key)

    async def refused() -> bool:
        try:
            await client.chat.completions.create(model=USE_CASE, messages=MESSAGES)
        except openai.PermissionDeniedError as error:
            return "infer" in str(error)
        except openai.AuthenticationError:
            return False  # the gateway has not heard of the key yet
        raise AssertionError("a key without the scope was answered")

    await until(refused)
