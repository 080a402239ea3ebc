"""The test of a candidate, through a loopback gateway that speaks as the real one does."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from decimal import Decimal

import pytest

from meta_agent.demo import stories
from pipelines.context import EvaluationSettings
from pipelines.evaluation.gateway_client import Fault, GatewayClient
from pipelines.evaluation.plan import EvaluationError
from pipelines.evaluation.run import run_test
from storage import audit, clock, deployments, evaluations, events, interactions, registry
from storage.ids import new_id

SETTINGS = EvaluationSettings(recorded_cases=5, concurrency=4, timeout_seconds=3)


class Gateway:
    """Answers as stable does, and for other releases as well as ``quality`` lets it."""

    def __init__(self, said, stable_release):
        self.said, self.stable = said, stable_release
        self.quality = 1.0
        self.on_candidate = self.on_stable = lambda number: None
        self.calls = Counter()

    def __call__(self, asked):
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["authorization"] == "Bearer key"
        assert asked.headers["x-meta-agent-purpose"] == "evaluation"
        body = json.loads(asked.body)
        use_case, _, release = body["model"].partition("@")
        assert use_case == "story-teller"
        stable = release == self.stable
        self.calls["stable" if stable else "candidate"] += 1
        special = (self.on_stable if stable else self.on_candidate)(sum(self.calls.values()))
        return special or self.story(body["messages"], 1.0 if stable else self.quality)

    def story(self, messages, quality=1.0, finish="stop"):
        turns = [each["content"] for each in messages if each["role"] == "user"]
        dice = random.Random(str(turns))
        text = stories.write_answer(turns, lambda _: dice.random() < quality, random.Random(1))
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return self.said.json({"choices": [choice]}, x_meta_agent_cost_usd="0.0005")

    def refuse(self, status, code, **headers):
        return self.said.json({"error": {"message": "no", "code": code}}, status, **headers)


@pytest.fixture
async def gateway(launch_server, said, story):
    behaviour = Gateway(said, story.stable_release)
    behaviour.server = await launch_server(behaviour)
    return behaviour


@pytest.fixture
def begin(start_run, gateway):
    def begin(run_id="prop_1", **more):
        world = {"gateway_url": gateway.server.url, "gateway_key": "key", "evaluation": SETTINGS}
        return start_run(run_id, **(world | more))

    return begin


def arguments(story):
    return {"use_case": story.use_case, "offering_id": story.offering}


async def record_traffic(db, story, count=12):
    def row(number):
        prompt = f"Tell a story about a brave fox named F{number // 2}."
        return {
            "id": new_id("int"), "at": clock.now(), "kind": "live", "use_case": story.use_case,
            "release_id": story.stable_release, "status": "ok", "response_text": "x",
            "request": {"model": story.use_case, "messages": [{"role": "user", "content": prompt}]},
        }  # fmt: skip

    await interactions.copy_batch(db, [row(number) for number in range(count)])


async def stored(db, evaluation_id):
    async with db.connection() as connection:
        return await evaluations.find(connection, evaluation_id), await evaluations.list_cases(
            connection, evaluation_id
        )


async def test_a_good_candidate_passes_on_suite_and_traffic(db, story, begin, gateway):
    await record_traffic(db, story)
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "passed", result["reason"]
    evaluation, cases = await stored(db, "eval_1")
    assert result["evaluation_id"] == evaluation.id == "eval_1"
    assert evaluation.proposal_id == "prop_1"
    origins = Counter(case.origin for case in cases)
    assert origins == {"suite": 30, "recorded": 5}
    assert evaluation.cases_done == evaluation.cases_planned == 35
    assert len({str(case.messages) for case in cases if case.origin == "recorded"}) == 5
    summary = evaluation.summary
    assert (summary["similarity"], summary["safety"], summary["error_share"]) == (1.0, 1.0, 0.0)
    assert summary["candidate"]["cost_usd"] == pytest.approx(35 * 0.0005)
    assert summary["candidate"]["latency_p95_ms"] > 0
    async with db.connection() as connection:
        release = await deployments.find_release(connection, evaluation.candidate_release_id)
        deployment = await deployments.find_deployment(connection, release.deployment_id)
        feed = [each for each in await events.recent(connection) if each.kind == "evaluation.progress"]
        assert [row.subject for row in await audit.list_rows(connection, event="evaluation.finished")] == [
            "eval_1"
        ]
    assert (deployment.provider, deployment.model, deployment.offering_id) == (
        "thrift", "small", story.offering,
    )  # fmt: skip
    assert (deployment.parameters, deployment.system_prompt) == ({"temperature": 0.5}, "You tell stories.")
    assert deployment.price_input == Decimal("0.0000006")
    assert release.evaluation_id == "eval_1"
    assert [each.data["done"] for each in reversed(feed)] == [8, 16, 24, 32, 35]
    assert gateway.calls == {"stable": 35, "candidate": 35}


async def test_a_careless_candidate_fails_with_the_reason(story, begin, gateway):
    gateway.quality = 0.5
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "failed"
    assert "no worse than stable in" in result["reason"]
    assert "most often it missed" in result["reason"]


async def test_an_unsafe_candidate_fails(story, begin, gateway):
    blocked = {"choices": [{"message": {"content": "Once. The end."}, "finish_reason": "content_filter"}]}
    gateway.on_candidate = lambda number: gateway.said.json(blocked) if number % 10 == 0 else None
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "failed"
    assert "safe" in result["reason"]


async def test_a_candidate_that_often_errs_fails_though_it_was_asked_again(story, begin, gateway):
    gateway.on_candidate = lambda _: gateway.refuse(502, "upstream_status_500", retry_after="0")
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "failed"
    assert "failed to answer 30 of 30" in result["reason"]
    assert gateway.calls["candidate"] == 90


async def test_a_silent_stable_means_that_nothing_could_be_measured(story, begin, gateway):
    gateway.on_stable = lambda _: gateway.refuse(504, "upstream_timeout")
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "error"
    assert "could not be measured" in result["reason"]
    assert gateway.calls["candidate"] == 8  # one chunk was enough to know


async def test_a_wrong_key_is_nobodys_failure(story, begin, gateway):
    gateway.on_candidate = gateway.on_stable = lambda _: gateway.refuse(401, "invalid_api_key")
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "error"
    assert result["summary"]["cases"] == 0


async def test_a_gateway_that_restarts_fails_no_evaluation(story, begin, gateway):
    gateway.on_candidate = lambda number: gateway.refuse(503, "not_ready") if number in (5, 9) else None
    gateway.on_stable = lambda number: gateway.said(hang_up=True) if number in (7, 8) else None
    running = asyncio.create_task(run_test(begin(), arguments(story)))
    async with asyncio.timeout(10):
        while sum(gateway.calls.values()) < 12:
            await asyncio.sleep(0.01)
    await gateway.server.stop()
    # What must pass is time: the gateway is away, and whoever asks meanwhile finds a closed door.
    await asyncio.sleep(1.5)
    await gateway.server.start()
    result = await running
    assert result["status"] == "passed", result["reason"]
    assert result["summary"]["unmeasured"] == 0


@pytest.mark.parametrize("lost", ["prepare", "plan", "cases:0", "cases:3", "judge"])
async def test_a_crash_after_any_step_doubles_nothing(db, story, begin, gateway, crash, lost):
    memory = {}
    with pytest.raises(crash):
        await run_test(begin(memory=memory, crash_after=lost), arguments(story))
    result = await run_test(begin(memory=memory), arguments(story))
    assert result["status"] == "passed"
    assert gateway.calls == {"stable": 30, "candidate": 30}  # no case was asked twice
    async with db.connection() as connection:
        assert len(await evaluations.list_evaluations(connection)) == 1
        assert len(await evaluations.list_cases(connection, "eval_1")) == 30
        assert len(await deployments.list_releases(connection)) == 2
        assert len(await audit.list_rows(connection, event="evaluation.finished")) == 1
        feed = [each for each in await events.recent(connection) if each.kind == "evaluation.progress"]
    assert len(feed) == 4


async def test_a_crash_in_the_middle_of_a_chunk_asks_only_what_was_in_flight(db, story, begin, gateway):
    memory = {}
    hung = []

    def hang(number):
        if number <= 30:
            return None
        hung.append(number)
        return gateway.said(hang=30)

    gateway.on_candidate = hang
    running = asyncio.create_task(run_test(begin(memory=memory), arguments(story)))
    async with asyncio.timeout(10):
        while not hung:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    done = (await stored(db, "eval_1"))[0].cases_done
    assert 0 < done < 30
    gateway.on_candidate = lambda _: None
    gateway.calls.clear()
    result = await run_test(begin(memory=memory), arguments(story))
    assert result["status"] == "passed"
    assert gateway.calls["candidate"] == 30 - done


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offering_id": "off_none"}, "no offering off_none"),
        ({"use_case": "nobody"}, "nothing serves 'nobody'"),
    ],
)
async def test_what_cannot_be_evaluated_says_why(db, story, begin, change, words):
    with pytest.raises(EvaluationError, match=words):
        await run_test(begin(), arguments(story) | change)
    async with db.connection() as connection:
        assert await evaluations.list_evaluations(connection) == []
        assert len(await deployments.list_releases(connection)) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reachable": False}, "cannot be called"),
        ({"price_output": None}, "price of small is not known"),
        ({"lifecycle": "retired"}, "is retired"),
        ({"provider": "lab", "model": "big"}, "is what serves already"),
    ],
)
async def test_an_offering_that_must_not_serve_is_not_tested(db, story, begin, values, words):
    async with db.transaction() as connection:
        await registry.update_offering(connection, story.offering, **values)
    with pytest.raises(EvaluationError, match=words):
        await run_test(begin(), arguments(story))


@pytest.mark.parametrize(
    ("answer", "fault", "words"),
    [
        ({"body": b"<html>"}, Fault.MODEL, "no chat completion"),
        ({"body": b'{"choices": []}'}, Fault.MODEL, "no chat completion"),
        ({"status": 400, "body": b'{"error": {"code": "upstream_refused"}}'}, Fault.MODEL, "HTTP 400"),
        ({"status": 502, "body": b'{"error": {"code": "upstream_credentials"}}'}, Fault.WAY, "HTTP 502"),
        ({"status": 503, "body": b"[]"}, Fault.WAY, "HTTP 503"),
        ({"hang": 5}, Fault.MODEL, "no answer within 0.2 seconds"),
        ({"hang_up": True}, Fault.WAY, "connection to the gateway broke"),
    ],
)  # fmt: skip
async def test_whose_fault_a_failure_is(launch_server, said, answer, fault, words):
    server = await launch_server(lambda _: said(**answer))
    client = GatewayClient(server.url, "key", timeout_seconds=0.2, patience_seconds=0.3)
    async with client:
        result = await client.ask("u", "rel_1", [{"role": "user", "content": "x"}])
    assert (result.fault, words in result.error) == (fault, True), result.error


async def test_nobody_listening_is_waited_for_and_then_given_up():
    started = time.monotonic()
    async with GatewayClient("http://127.0.0.1:9", "key", patience_seconds=0.5) as client:
        result = await client.ask("u", "rel_1", [{"role": "user", "content": "x"}])
    assert result.fault is Fault.WAY
    assert "cannot be reached" in result.error
    assert time.monotonic() - started >= 0.5


async def test_those_who_queue_behind_a_closed_door_do_not_each_wait_anew():
    started = time.monotonic()
    async with GatewayClient("http://127.0.0.1:9", "key", concurrency=2, patience_seconds=0.5) as client:
        calls = [client.ask("u", "rel_1", [{"role": "user", "content": "x"}]) for _ in range(20)]
        assert {each.fault for each in await asyncio.gather(*calls)} == {Fault.WAY}
    assert time.monotonic() - started < 3


async def test_a_release_that_the_gateway_does_not_know_yet_is_asked_for_again(story, begin, gateway):
    gateway.on_candidate = lambda number: gateway.refuse(404, "model_not_found") if number < 20 else None
    result = await run_test(begin(), arguments(story))
    assert result["status"] == "passed", result["reason"]
    assert result["summary"]["unmeasured"] == 0
