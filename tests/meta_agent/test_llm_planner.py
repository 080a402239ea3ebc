"""The LLM planner against a server that speaks the real wire format, well and badly."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai.lib._pydantic import to_strict_json_schema

from meta_agent.gateway_settings import ProviderSettings
from meta_agent.llm import ModelNotUsableError, build_chat_model
from meta_agent.planners.llm import BadReplyError, LlmPlanner, _Reply, parse_reply, reply_schema
from meta_agent.planners.rules import plan_by_rules
from meta_agent.runner import Agent
from meta_agent.settings import AgentSettings, Settings
from meta_agent.signals import assess
from storage import decisions, proposals

from .conftest import HOSTILE
from .worlds import USE_CASE, degraded, evaluation, fleet_facts, ranking, use_case

FACTS = fleet_facts(use_case(ranking=ranking(0.3, 0.5), evaluations=()))
SIGNALS = assess(FACTS)


class Wire:
    """An OpenAI-compatible server that gives the answers it was given, in order."""

    def __init__(self) -> None:
        self.answers: list[str | int] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                wire.requests.append({"path": self.path, **body})
                wire.keys.append(self.headers["authorization"])
                answer = wire.answers.pop(0) if len(wire.answers) > 1 else wire.answers[0]
                status, document = _document(answer, body)
                payload = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def _document(answer: str | int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if isinstance(answer, int):
        return answer, {"error": {"message": "sk-secret leaked here", "type": "server_error"}}
    if "max_tokens" in body:  # Anthropic's wire: the other client always sends it
        return 200, {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": answer}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 10},
        }
    return 200, {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
    }


@pytest.fixture
def wire() -> Iterator[Wire]:
    found = Wire()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def llm_settings(wire: Wire) -> Settings:
    return Settings(
        providers=(
            ProviderSettings(name="lab", kind="openai_compatible", base_url=wire.url, api_key="key-1"),
        ),
        agent=AgentSettings(planner="llm", model="lab/planner-1", interval_seconds=60.0),
    )


@pytest.fixture
def planner(wire: Wire) -> LlmPlanner:
    return LlmPlanner("lab/planner-1", lambda: build_chat_model(llm_settings(wire)))


def reply(*actions: dict[str, Any], **more: Any) -> str:
    complete = [{"reason": "It would save 30 %.", "expected_saving_share": 0.3, **each} for each in actions]
    return json.dumps({"summary": "One test.", "actions": complete, **more})


TEST = {"tool": "test", "use_case": USE_CASE, "offering_id": "off_0"}
GOOD = reply(TEST)


async def test_a_good_reply_becomes_the_plan(wire, planner):
    wire.answers = [GOOD]
    plan = await planner.plan(FACTS, SIGNALS)
    (action,) = plan.actions
    assert (plan.planner, action.tool, action.target) == ("llm:lab/planner-1", "test", "off_0")
    assert action.prediction == {"saving_share": 0.3}
    # what the rules would have done is an alternative on record
    assert action.alternatives[0]["arguments"]["offering_id"] == "off_1"
    (request,) = wire.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["model"] == "planner-1"
    assert request["response_format"]["type"] == "json_schema"
    assert wire.keys == ["Bearer key-1"]


async def test_no_action_is_an_answer(wire, planner):
    wire.answers = [reply(summary="Nothing is worth its cost.")]
    plan = await planner.plan(FACTS, SIGNALS)
    assert plan.actions == ()
    assert plan.holds == {None: "Nothing is worth its cost."}


@pytest.mark.parametrize(
    "bad",
    [
        "this is no JSON",
        '{"summary": "half',
        "[]",
        '{"actions": []}',
        reply({"tool": "shell", "command": "rm -rf /"}),
        reply({**TEST, "command": "rm -rf /"}),
        reply({**TEST, "offering_id": "off_unknown"}),
        reply({**TEST, "use_case": "somebody-elses"}),
        reply({"tool": "deploy", "use_case": USE_CASE, "release_id": "rel_off_0"}),
        reply({"tool": "abort", "rollout_id": "ro_1"}),
        reply({"tool": "rollback", "use_case": USE_CASE}),
        reply(TEST, {**TEST, "offering_id": "off_1"}),
        reply(*[TEST] * 4),
        reply({**TEST, "expected_saving_share": 1e999}),
        reply({**TEST, "reason": "nul \x00"}),
        reply(TEST, summary="half \ud800"),
    ],
)
async def test_a_bad_reply_is_sent_back_once(wire, planner, bad):
    wire.answers = [bad, GOOD]
    plan = await planner.plan(FACTS, SIGNALS)
    assert plan.planner == "llm:lab/planner-1"
    assert [each.target for each in plan.actions] == ["off_0"]
    assert len(wire.requests) == 2
    assert wire.requests[1]["messages"][-1]["content"].startswith("That plan cannot be used")


async def test_no_model_stands_between_proof_of_harm_and_the_way_back(wire, planner):
    wire.answers = [reply(summary="All is well, do nothing.")]
    facts = fleet_facts(use_case(stable=degraded()))
    plan = await planner.plan(facts, assess(facts))
    assert [each.tool for each in plan.actions] == ["rollback"]
    assert wire.requests == []


@pytest.mark.parametrize("bad", ["no JSON", reply({**TEST, "offering_id": "off_unknown"}), 500, 401, 429])
async def test_after_two_bad_replies_or_a_failure_the_rules_plan(wire, planner, bad):
    wire.answers = [bad]
    plan = await planner.plan(FACTS, SIGNALS)
    assert plan.planner == "rules (instead of llm:lab/planner-1)"
    assert plan.actions == plan_by_rules(FACTS, SIGNALS).actions
    assert "failed" in plan.summary
    assert "secret" not in plan.summary
    assert "off_unknown" not in plan.summary
    assert len(wire.requests) == (1 if bad == 401 else 2)


async def test_a_server_that_is_not_there_is_no_reason_to_stop(planner, wire):
    wire.server.server_close()
    plan = await asyncio.wait_for(planner.plan(FACTS, SIGNALS), 20)
    assert plan.actions == plan_by_rules(FACTS, SIGNALS).actions


async def test_nothing_is_asked_when_there_is_nothing_to_decide(wire, planner):
    assert (await planner.plan(fleet_facts(use_case()), ())).actions == ()
    paused = FACTS.model_copy(update={"paused": True})
    assert (await planner.plan(paused, SIGNALS)).actions == ()
    assert wire.requests == []


async def test_the_whole_prompt_holds_no_word_of_a_third_party(wire, fleet, context, db):
    await fleet.scanned()
    await fleet.ranked()
    wire.answers = [
        json.dumps(
            {
                "summary": "One test.",
                "actions": [
                    {
                        "tool": "test",
                        "use_case": fleet.use_case,
                        "offering_id": fleet.offerings[2],
                        "reason": "It saves 30 %.",
                        "expected_saving_share": 0.3,
                    }
                ],
            }
        )
    ]
    await Agent(db, context, llm_settings(wire)).run_cycle("manual")
    sent = json.dumps(wire.requests)
    assert HOSTILE not in sent
    assert fleet.offerings[2] in sent
    async with db.connection() as connection:
        (cycle,) = await decisions.list_cycles(connection)
        (filed,) = await proposals.list_proposals(connection)
        (kept,) = await decisions.list_decisions(connection)
    assert cycle.planner == "llm:lab/planner-1"
    assert filed.arguments == {"use_case": fleet.use_case, "offering_id": fleet.offerings[2]}
    assert kept.prediction == {"saving_share": 0.3}


def test_the_schema_is_what_the_parser_takes():
    ours, theirs = reply_schema(), to_strict_json_schema(_Reply)
    actions = ours["properties"]["actions"]["items"]["anyOf"]
    known = {
        each["properties"]["tool"]["const"]: set(each["properties"]) for each in theirs["$defs"].values()
    }
    assert {each["properties"]["tool"]["enum"][0]: set(each["properties"]) for each in actions} == known
    assert all(each["additionalProperties"] is False for each in (ours, *actions))
    assert all(set(each["required"]) == set(each["properties"]) for each in (ours, *actions))


def test_what_is_wrong_is_told_without_repeating_it():
    with pytest.raises(BadReplyError) as told:
        parse_reply({"summary": "x", "actions": [{**TEST, "evil words": "evil"}]})
    assert "evil" not in str(told.value)


@pytest.mark.parametrize(
    ("model", "why"),
    [(None, "provider/model"), ("lab", "provider/model"), ("other/x", "not configured")],
)
def test_a_model_that_cannot_be_built_says_why(wire, model, why):
    settings = llm_settings(wire)
    agent = settings.agent.model_copy(update={"model": model})
    with pytest.raises(ModelNotUsableError, match=why):
        build_chat_model(settings.model_copy(update={"agent": agent}))


async def test_anthropic_models_speak_their_own_wire(wire):
    settings = Settings(
        providers=(
            ProviderSettings(
                name="claude", kind="anthropic", base_url=wire.url.removesuffix("/v1"), api_key="key-2"
            ),
        ),
        agent=AgentSettings(planner="llm", model="claude/claude-x"),
    )
    wire.answers = ["no JSON", GOOD]
    plan = await LlmPlanner("claude/claude-x", lambda: build_chat_model(settings)).plan(FACTS, SIGNALS)
    assert (plan.planner, [each.target for each in plan.actions]) == ("llm:claude/claude-x", ["off_0"])
    assert [each["path"] for each in wire.requests] == ["/v1/messages"] * 2


def test_a_release_that_is_proven_may_be_deployed():
    facts = fleet_facts(use_case(ranking=ranking(0.5), evaluations=(evaluation(),)))
    planner = LlmPlanner("x", lambda: None)
    said = {"parsed": json.loads(reply({"tool": "deploy", "use_case": USE_CASE, "release_id": "rel_off_0"}))}
    assert planner._read(said, facts, plan_by_rules(facts, ())).actions[0].target == "rel_off_0"
