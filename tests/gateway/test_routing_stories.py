"""Who answers, and who is asked besides: arms, pins and shadows as applications and analysts meet them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import choose_arm, point_of
from storage import use_cases
from storage.pseudonyms import pseudonym
from storage.routing import DeploymentSpec, Route, RouteArm
from storage.vocabulary import Arm, AssignmentUnit, Risk
from tests.gateway.conftest import PSEUDONYM_KEY, USE_CASE, Fleet, Running, config_for, lab, serving
from tests.gateway.stories import BODY, COST, MESSAGES, MoodyUpstream, key_of, metric, rows_of, serve_by

TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@pytest.fixture
async def upstream() -> AsyncIterator[MoodyUpstream]:
    async with MoodyUpstream().running() as server:
        assert isinstance(server, MoodyUpstream)
        yield server


def in_conversation(name: str, **more: Any) -> dict[str, Any]:
    return {**BODY, "metadata": {"conversation_id": name}, **more}


# -- assignment


async def test_each_use_case_has_its_own_assignment_unit(gateway: Running, fleet: Fleet) -> None:
    for unit in AssignmentUnit:
        async with fleet.db.transaction() as connection:
            await use_cases.declare(connection, name=f"per-{unit}", risk=Risk.LOW)
        release = await fleet.release("echo", use_case=f"per-{unit}")
        version = await fleet.route(
            release, (release, 0.5), unit=unit, use_case=f"per-{unit}", rollout_id="r"
        )
    await gateway.serves(version)
    ids = {}
    for unit in AssignmentUnit:
        response = await gateway.post(in_conversation("c1", model=f"per-{unit}", user="u1"))
        ids[unit] = response.headers["x-request-id"]
    units = {row["use_case"]: row["unit"] for row in await rows_of(fleet, 3)}
    assert units == {
        "per-request": ids[AssignmentUnit.REQUEST],
        "per-conversation": "c1",
        "per-user": pseudonym(PSEUDONYM_KEY, "u1"),
    }


async def test_two_gateways_draw_the_same_arm_for_the_same_unit(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, tmp_path: Path
) -> None:
    stable, candidate = await fleet.release("say:old"), await fleet.release("say:new")
    version = await fleet.route(stable, (candidate, 0.4), rollout_id="ro_1")
    other_config = config_for(tmp_path / "other", {"lab": lab(upstream.base_url)})
    other_config = dataclasses.replace(other_config, gateway_id="gw-other")
    async with serving(other_config, fleet.db, gateway.token) as other:
        drawn: list[list[str]] = []
        for each in (gateway, other):
            await each.serves(version)
            answers = [await each.post(in_conversation(f"c{number}")) for number in range(25)]
            drawn.append([answer.headers["x-meta-agent-variant"] for answer in answers])
    assert drawn[0] == drawn[1]
    assert {"stable", "candidate"} == set(drawn[0])


async def test_a_growing_weight_keeps_whom_it_has_and_is_logged(gateway: Running, fleet: Fleet) -> None:
    stable, candidate = await fleet.release("say:old"), await fleet.release("say:new")
    had: set[str] = set()
    names = [f"c{number}" for number in range(20)]
    expected = set()
    for weight in (0.2, 0.5, 0.9):
        await gateway.serves(await fleet.route(stable, (candidate, weight), rollout_id="ro_1"))
        has = set()
        for name in names:
            response = await gateway.post(in_conversation(name))
            is_candidate = response.headers["x-meta-agent-variant"] == "candidate"
            has |= {name} if is_candidate else set()
            control = not is_candidate and point_of("ro_1", name) >= 1 - weight
            expected.add((name, weight, "candidate" if is_candidate else "stable", control))
        assert had <= has, "nobody is moved back"
        had = has
    rows = await rows_of(fleet, 60)
    assert {(row["unit"], row["weight"], row["arm"], row["control"]) for row in rows} == expected
    at_first = [row for row in rows if row["weight"] == 0.2]
    assert {row["control"] for row in at_first} == {True, False}


def _route(weight: float, salt: str = "ro_1") -> Route:
    spec = DeploymentSpec("dep", "lab", "m", {}, None, "default", Decimal(0), Decimal(0))
    arms = (RouteArm(Arm.STABLE, "r1", spec, 1.0), RouteArm(Arm.CANDIDATE, "r2", spec, weight))
    return Route(USE_CASE, 1, salt, salt, AssignmentUnit.CONVERSATION, arms)


@given(
    salt=st.text(max_size=8),
    unit=st.text(max_size=30),
    weights=st.lists(st.floats(0, 1), min_size=2, max_size=6).map(sorted),
)
def test_growing_a_weight_never_moves_a_unit_that_has_the_candidate(
    salt: str, unit: str, weights: list[float]
) -> None:
    drawn = [choose_arm(_route(weight, salt), unit) for weight in weights]
    arms = [each.arm.arm for each in drawn if each is not None]
    assert len(arms) == len(weights)
    assert arms == sorted(arms, key=lambda arm: arm is Arm.CANDIDATE), "once candidate, always candidate"


@pytest.mark.parametrize("weight", [0.05, 0.25, 0.5])
def test_the_control_group_is_as_large_as_the_candidates_and_shares_nobody_with_it(weight: float) -> None:
    units = [f"c{number}" for number in range(8000)]
    drawn = [choose_arm(_route(weight), unit) for unit in units]
    candidate = {each.unit for each in drawn if each and each.arm.arm is Arm.CANDIDATE}
    control = {each.unit for each in drawn if each and each.control}
    assert not candidate & control
    spread = 5 * (len(units) * weight * (1 - weight)) ** 0.5
    assert abs(len(candidate) - len(units) * weight) < spread
    assert abs(len(control) - len(units) * weight) < spread
    grown = [choose_arm(_route(min(0.5, 2 * weight)), unit) for unit in units]
    assert not control & {each.unit for each in grown if each and each.arm.arm is Arm.CANDIDATE}


# -- pins


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_pinned_call_is_never_diverted(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    stable, other = await fleet.release("say:stable"), await fleet.release("say:other")
    failing = await fleet.release("status:503")
    pinned = await fleet.release("say:pinned")
    token = await key_of(gateway, fleet, "judge", "infer", "inspect", "pin")
    await gateway.serves(await fleet.route(stable, (other, 1.0), shadow=(other, 1.0), rollout_id="ro_1"))
    await serve_by(
        gateway,
        fleet,
        fallbacks=[other],
        downgrade=other,
        limits={"usd_per_day": COST / 2, "over_budget": "downgrade"},
        waiting={"hedge_after_seconds": 0.0, "retries": 0},
    )
    spends = await gateway.post(BODY)
    assert spends.status_code == 200
    asked = len(upstream.requests)
    diverted = await gateway.post(BODY)
    assert diverted.headers["x-meta-agent-variant"] == "fallback", "the budget is spent"
    body = {**BODY, "stream": streamed}
    response = await gateway.post({**body, "model": f"{USE_CASE}@{pinned}"}, token)
    assert response.status_code == 200
    assert "pinned" in response.text
    assert (response.headers["x-meta-agent-variant"], response.headers["x-meta-agent-release"]) == (
        "pinned",
        pinned,
    )
    response = await gateway.post({**body, "model": f"{USE_CASE}@{failing}"}, token)
    assert response.status_code == 502
    assert upstream.asked()[asked + 1 :] == ["say:pinned", "status:503"]
    ended = await rows_of(fleet, 2, "key_id = 'judge'")
    assert [(row["status"], row["arm"], row["fallback_of"]) for row in ended] == [
        ("ok", None, None),
        ("error", None, None),
    ]
    assert await fleet.rows("kind = 'shadow'") == []


# -- shadows

TURNS: Any = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "of the sea"},
    {"role": "assistant", "content": "The sea was calm."},
    {"role": "user", "content": "and then?"},
]
CALLED: Any = [
    {"role": "user", "content": "what is above?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": "up"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "a cloud"},
]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("messages", "model", "live_text", "shadow_text"),
    [(TURNS, "echo", "and then?", "a shadow"), (CALLED, "tools", '{"at": "sky"}', "a shadow")],
    ids=["multi-turn", "tool-calls"],
)
async def test_every_kind_of_conversation_is_mirrored_and_both_texts_are_kept(
    gateway: Running,
    fleet: Fleet,
    upstream: MoodyUpstream,
    messages: Any,
    model: str,
    live_text: str,
    shadow_text: str,
    streamed: bool,
) -> None:
    stable, shadow = await fleet.release(model), await fleet.release("say:a shadow")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0), rollout_id="ro_1"))
    body = in_conversation("c1", messages=messages, tools=TOOLS, stream=streamed)
    assert (await gateway.post(body)).status_code == 200
    live, copy = await rows_of(fleet, 2)
    if live["kind"] == "shadow":
        live, copy = copy, live
    assert (copy["shadow_of"], copy["kind"], copy["arm"]) == (live["id"], "shadow", "shadow")
    assert live_text in live["response_text"]
    assert shadow_text in copy["response_text"]
    assert (copy["unit"], copy["conversation_id"], copy["request"]) == ("c1", "c1", live["request"])
    assert upstream.requests[-1]["messages"] == messages
    assert upstream.requests[-1]["tools"] == TOOLS


async def test_a_shadow_takes_none_of_the_callers_time_and_no_more_places_than_it_may(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    stable, shadow = await fleet.release("echo"), await fleet.release("slow:late")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0), rollout_id="ro_1"))
    await serve_by(gateway, fleet, shadow={"concurrent": 2})
    for _ in range(5):
        assert (await gateway.post(BODY)).status_code == 200  # while no copy can end
    await upstream.has_been_asked(7)
    assert upstream.asked().count("slow:late") == 2
    assert await metric(gateway, "meta_agent_shadow_dropped_total", reason="no_room") == 3
    upstream.gate_of("late").set()
    assert {row["response_text"] for row in await rows_of(fleet, 2, "kind = 'shadow'")} == {"late"}
    await gateway.post(BODY)
    await rows_of(fleet, 3, "kind = 'shadow'")  # there is room again


async def test_a_shadow_ends_with_its_budget_and_the_callers_limits_are_untouched(
    gateway: Running, fleet: Fleet
) -> None:
    stable, shadow = await fleet.release("echo"), await fleet.release("say:copy")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0), rollout_id="ro_1"))
    await serve_by(gateway, fleet, shadow={"usd_per_day": 1.5 * COST}, limits={"usd_per_day": 3.5 * COST})
    for number in (1, 2):
        assert (await gateway.post(BODY)).status_code == 200
        await rows_of(fleet, number, "kind = 'shadow'")
    assert (await gateway.post(BODY)).status_code == 200, "the copies are not on the callers' bill"
    assert await metric(gateway, "meta_agent_shadow_dropped_total", reason="budget_spent") == 1
    await rows_of(fleet, 3, "kind = 'live'")
    await rows_of(fleet, 2, "kind = 'shadow'")


async def test_a_shadow_gets_its_share_of_requests_and_no_longer_answers_than_callers(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    stable = await fleet.release("echo")
    shadow = await fleet.release("say:copy", parameters={"max_tokens": 4000})
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 0.3), rollout_id="ro_1"))
    await serve_by(gateway, fleet, limits={"max_tokens": 50}, shadow={"concurrent": 8})
    ids = [(await gateway.post(BODY)).headers["x-request-id"] for _ in range(30)]
    mirrored = {each for each in ids if point_of("ro_1:shadow", each) < 0.3}
    assert 0 < len(mirrored) < 25
    copies = await rows_of(fleet, len(mirrored), "kind = 'shadow'")
    assert {copy["shadow_of"] for copy in copies} == mirrored
    lengths = {(each["model"], each.get("max_tokens")) for each in upstream.requests}
    assert lengths == {("echo", 50), ("say:copy", 50)}


async def test_messages_stay_a_single_list(gateway: Running, fleet: Fleet, upstream: MoodyUpstream) -> None:
    """A copy is made of the request as the caller sent it, not of what a deployment made of it."""
    stable = await fleet.release("echo", system_prompt="You are stable.")
    shadow = await fleet.release("say:copy", system_prompt="You are a shadow.")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0), rollout_id="ro_1"))
    await gateway.post(BODY)
    await rows_of(fleet, 2)
    prompts = [request["messages"][0]["content"] for request in upstream.requests]
    assert prompts == ["You are stable.", "You are a shadow."]
    assert upstream.requests[0]["messages"][1:] == upstream.requests[1]["messages"][1:] == MESSAGES
