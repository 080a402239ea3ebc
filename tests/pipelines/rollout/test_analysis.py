"""Rows in, words out: who is rolled back, who goes on, and who has to wait."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.rollout.analysis import (
    Analysis,
    Baseline,
    Row,
    Vote,
    analyse_canary,
    analyse_shadow,
    pairs_from,
    votes_from,
)
from pipelines.rollout.betting import LogitBet
from pipelines.rollout.next_action import Action, OperatorRequest, next_action
from pipelines.rollout.plan import CanaryStep, RolloutPlan, ShadowStep
from storage.vocabulary import Arm, InteractionStatus, Phase, RolloutState

START = datetime(2026, 1, 5, tzinfo=UTC)
OK, ERROR = InteractionStatus.OK, InteractionStatus.ERROR
BLOCKED, CANCELLED = InteractionStatus.BLOCKED, InteractionStatus.CANCELLED
PLAN = RolloutPlan.small(min_pairs=20, min_units=10, max_wait_seconds=60)


def row(unit: str, second: float, arm: Arm, status: InteractionStatus = OK, **more: Any) -> Row:
    more = {"weight": 0.1, "latency_ms": 100.0 if status is OK else None, **more}
    return Row(unit=unit, arm=arm, status=status, at=START + timedelta(seconds=second), **more)


def traffic(
    rng: random.Random,
    count: int,
    weight: float,
    bad: float,
    *,
    stable: float = 0.02,
    name: str = "u",
    **more: Any,
) -> list[Row]:
    """One request by each of ``count`` units; the coin is the router's."""
    rows = []
    for index in range(count):
        arm = Arm.CANDIDATE if rng.random() < weight else Arm.STABLE
        failed = rng.random() < (bad if arm is Arm.CANDIDATE else stable)
        rows.append(row(f"{name}{index}", index, arm, ERROR if failed else OK, weight=weight, **more))
    return rows


def canary(rows: list[Row], step: int = 0, waited: float = 10, plan: RolloutPlan = PLAN) -> Analysis:
    return analyse_canary(votes_from(rows), plan, step, waited)


# --- votes ----------------------------------------------------------------------------


def test_a_pinned_conversation_votes_once() -> None:
    rows = [row("talk", second, Arm.CANDIDATE, ERROR) for second in range(50)]
    (vote,) = votes_from(rows)
    assert (vote.failed, vote.arm, vote.at) == (True, Arm.CANDIDATE, START)
    assert canary(rows).e_value == canary(rows[:1]).e_value


def test_the_first_failure_is_the_vote_and_stays_it() -> None:
    rows = [row("a", 0, Arm.STABLE), row("a", 1, Arm.STABLE, ERROR, weight=0.25)]
    rows += [row("a", 2, Arm.CANDIDATE, ERROR, weight=0.5)]
    (vote,) = votes_from(rows)
    assert (vote.arm, vote.weight, vote.failed) == (Arm.STABLE, 0.25, True)
    assert vote.scored is not None
    assert vote.scored.weight == 0.1
    assert vote.first.weight == 0.1


def test_a_failure_that_another_arm_answered_is_still_the_drawn_arms() -> None:
    (vote,) = votes_from([row("a", 0, Arm.CANDIDATE, OK, fell_back=True, finding=True)])
    assert (vote.failed, vote.violated, vote.latency_ms) == (True, False, None)


def test_what_is_nobodys_fault_does_not_count() -> None:
    rows = [row("a", 0, Arm.CANDIDATE, CANCELLED), row("b", 1, Arm.STABLE, InteractionStatus.REJECTED)]
    assert votes_from([*rows, row("c", 2, Arm.SHADOW), row("d", 3, Arm.STABLE, weight=0.0)]) == ()


def test_blocked_and_found_are_violations() -> None:
    rows = [row("a", 0, Arm.CANDIDATE, BLOCKED), row("b", 1, Arm.CANDIDATE, finding=True)]
    assert [(vote.violated, vote.failed) for vote in votes_from(rows)] == [(True, False)] * 2


@given(st.permutations(traffic(random.Random(1), 30, 0.3, 0.5)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_reading_does_not_matter(rows: list[Row]) -> None:
    assert votes_from(rows) == votes_from(sorted(rows, key=lambda each: each.at))


# --- canary ---------------------------------------------------------------------------


def first_failed(rows: list[Row], step: int = 0, plan: RolloutPlan = PLAN) -> int | None:
    """How many rows were seen when the rollout failed. Wealth in label bets only moves with
    a failure, so looking after each of them is looking after every row."""
    for index, each in enumerate(rows, 1):
        if each.failed and canary(rows[:index], step, plan=plan).phase is Phase.FAILED:
            return index
    return None


def test_the_null_is_seldom_rolled_back_with_a_look_after_every_unit() -> None:
    """alpha is 0.05 here so that a rate can be seen at all in 400 runs."""
    plan = replace(PLAN, alpha=0.05)
    rng = random.Random(20260105)
    rows = (traffic(rng, 300, 0.1, 0.05, stable=0.05, latency_ms=None) for _ in range(400))
    wrong = sum(first_failed(each, plan=plan) is not None for each in rows)
    assert wrong / 400 <= 0.05


def test_readers_who_fail_together_do_not_roll_a_good_candidate_back() -> None:
    """One reader in five fails every time, 10 requests each, pinned: the same world for both arms."""
    rng, wrong, wrong_by_request = random.Random(11), 0, 0
    for _ in range(100):
        rows: list[Row] = []
        for unit in range(60):
            arm = Arm.CANDIDATE if rng.random() < 0.1 else Arm.STABLE
            status = ERROR if rng.random() < 0.2 else OK
            rows += [row(f"u{unit}", unit + turn * 3, arm, status, latency_ms=None) for turn in range(10)]
        ordered = sorted(rows, key=lambda each: each.at)
        looks = (canary(ordered[:end]).phase for end in range(30, len(ordered) + 1, 60))
        wrong += any(phase is Phase.FAILED for phase in looks)
        single = [replace(each, unit=f"r{index}") for index, each in enumerate(ordered)]
        looks = (canary(single[:end]).phase for end in range(30, len(single) + 1, 60))
        wrong_by_request += any(phase is Phase.FAILED for phase in looks)
    assert wrong <= 2
    assert wrong_by_request >= 10  # what counting every request would have done


def test_a_candidate_that_fails_half_the_time_is_caught_within_a_handful() -> None:
    rng, seen = random.Random(4), []
    for _ in range(30):
        rows = traffic(rng, 600, 0.1, 0.5, stable=0.005)
        end = first_failed(rows)
        assert end is not None
        seen.append(sum(each.failed and each.arm is Arm.CANDIDATE for each in rows[:end]))
    assert sorted(seen)[len(seen) // 2] <= 6
    assert max(seen) <= 12


def test_unsafe_outputs_roll_back_as_failures_do() -> None:
    rows = [row(f"s{i}", i, Arm.STABLE) for i in range(60)]
    rows += [row(f"c{i}", 60 + i, Arm.CANDIDATE, BLOCKED) for i in range(7)]
    analysis = canary(rows)
    assert analysis.phase is Phase.FAILED
    assert "violation" in analysis.why
    assert {metric.name: metric.phase for metric in analysis.metrics}["violation"] is Phase.FAILED


def test_a_slow_candidate_is_rolled_back_and_a_tolerable_one_is_not() -> None:
    def run(factor: float) -> Phase:
        rng, rows = random.Random(9), []
        for index in range(600):
            arm = Arm.CANDIDATE if rng.random() < 0.25 else Arm.STABLE
            latency = rng.lognormvariate(5, 0.3) * (factor if arm is Arm.CANDIDATE else 1)
            rows.append(row(f"u{index}", index, arm, weight=0.25, latency_ms=latency, cost_usd=0.001))
        return canary(rows, step=1).phase

    assert (run(3.0), run(1.2)) == (Phase.FAILED, Phase.SUCCESSFUL)


def test_scores_are_bet_on_with_the_coin_that_drew_them() -> None:
    rng, bet, rows = random.Random(2), LogitBet(), []
    for index in range(200):
        weight = 0.1 if index < 100 else 0.25
        arm = Arm.CANDIDATE if rng.random() < weight else Arm.STABLE
        latency = rng.lognormvariate(5, 0.4)
        rows.append(row(f"u{index}", index, arm, weight=weight, latency_ms=latency))
        on_candidate = arm is Arm.CANDIDATE
        value = math.log(latency) - (math.log(1.25) if on_candidate else 0)
        bet.score(value, candidate=on_candidate, weight=weight)
    metrics = {metric.name: metric for metric in canary(rows, step=1).metrics}
    assert metrics["latency"].e_value == pytest.approx(bet.e_value)
    assert metrics["cost"].phase is Phase.RUNNING  # never measured: no word of success about it


def test_a_healthy_candidate_passes_each_step_with_enough_units() -> None:
    rows: list[Row] = []
    rng = random.Random(5)
    for step, weight in enumerate(PLAN.weights):
        early = canary(rows, step)
        assert early.phase is Phase.RUNNING
        rows += traffic(rng, 200, weight, 0.01, stable=0.01, name=f"s{step}-")
        assert canary(rows, step).phase is Phase.SUCCESSFUL, canary(rows, step).why


def test_no_evidence_is_never_success() -> None:
    assert canary([], waited=1).phase is Phase.RUNNING
    assert canary([], waited=31).phase is Phase.ERROR
    assert canary([], waited=61).phase is Phase.INCONCLUSIVE
    few = [row("c", 0, Arm.CANDIDATE), row("s", 1, Arm.STABLE)]
    assert canary(few, waited=31).phase is Phase.RUNNING
    late = canary(few, waited=61)
    assert late.phase is Phase.INCONCLUSIVE
    assert "1 of 10 units" in late.why


def test_without_a_control_arm_or_with_a_wrong_split_there_is_no_success() -> None:
    alone = [row(f"c{i}", i, Arm.CANDIDATE) for i in range(30)]
    halves = [replace(each, weight=0.5) for each in alone[:12]]
    assert canary(halves, step=2).phase is Phase.RUNNING
    assert "no unit on stable" in canary(halves, step=2).why
    assert canary([*alone, row("s", 99, Arm.STABLE)]).phase is Phase.ERROR


def test_evidence_short_of_proof_holds_the_step() -> None:
    rows = [row(f"s{i}", i, Arm.STABLE) for i in range(90)]
    rows += [row(f"c{i}", 90 + i, Arm.CANDIDATE, ERROR if i < 4 else OK) for i in range(12)]
    analysis = canary(rows)
    assert analysis.phase is Phase.RUNNING
    assert "lean" in analysis.why
    assert canary(rows, waited=61).phase is Phase.INCONCLUSIVE


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([OK, ERROR, BLOCKED, CANCELLED])), max_size=60))
@settings(max_examples=100, deadline=None)
def test_success_always_has_its_units(outcomes: list[tuple[bool, InteractionStatus]]) -> None:
    rows = [
        row(f"u{i}", i, Arm.CANDIDATE if candidate else Arm.STABLE, status, weight=0.5)
        for i, (candidate, status) in enumerate(outcomes)
    ]
    analysis = canary(rows, step=2)
    on_candidate = sum(each.arm is Arm.CANDIDATE and each.counted for each in rows)
    if analysis.phase is Phase.SUCCESSFUL:
        assert on_candidate >= 10
    json.dumps(analysis.to_json(), allow_nan=False)


# --- all traffic ----------------------------------------------------------------------


def full(count: int, failures: int, status: InteractionStatus = ERROR) -> list[Row]:
    return [
        row(f"f{i}", 1000 + i, Arm.CANDIDATE, status if i < failures else OK, weight=1.0)
        for i in range(count)
    ]


def test_at_all_traffic_the_candidate_is_held_against_what_stable_did() -> None:
    before = traffic(random.Random(6), 200, 0.5, 0.02, stable=0.02)
    assert canary([*before, *full(30, 0)], step=3).phase is Phase.SUCCESSFUL
    assert canary([*before, *full(30, 15)], step=3).phase is Phase.FAILED
    assert canary([*before, *full(30, 15, BLOCKED)], step=3).phase is Phase.FAILED
    assert canary([*before, *full(5, 0)], step=3).phase is Phase.RUNNING


def test_a_recorded_baseline_counts_like_a_measured_one() -> None:
    votes: tuple[Vote, ...] = votes_from(full(40, 8))
    calm, stormy = Baseline(500, 0.01, 0.0), Baseline(500, 0.2, 0.0)
    assert analyse_canary(votes, PLAN, 3, 10, calm).phase is Phase.FAILED
    assert analyse_canary(votes, PLAN, 3, 10, stormy).phase is Phase.SUCCESSFUL


# --- shadow ---------------------------------------------------------------------------


def mirrored(
    count: int, stable: InteractionStatus, shadow: InteractionStatus, *, unit: str = "u"
) -> list[Row]:
    rows = []
    for index in range(count):
        name = f"{unit}{index}"
        rows.append(row(name, index, Arm.STABLE, stable, weight=0.0, pair=name))
        rows.append(row(name, index, Arm.SHADOW, shadow, weight=0.0, pair=name))
    return rows


def shadow(rows: list[Row], waited: float = 10) -> Analysis:
    return analyse_shadow(pairs_from(rows), PLAN, waited)


def test_shadow_passes_an_equal_candidate_and_stops_a_broken_one() -> None:
    assert shadow(mirrored(30, OK, OK)).phase is Phase.SUCCESSFUL
    assert shadow(mirrored(30, ERROR, ERROR)).phase is Phase.SUCCESSFUL
    assert shadow(mirrored(30, OK, ERROR)).phase is Phase.FAILED
    assert shadow(mirrored(30, OK, BLOCKED)).phase is Phase.FAILED


def test_shadow_without_pairs_is_never_success() -> None:
    assert shadow(mirrored(5, OK, OK)).phase is Phase.RUNNING
    assert shadow(mirrored(5, OK, OK), waited=61).phase is Phase.INCONCLUSIVE
    assert [shadow([], waited).phase for waited in (1, 31, 61)] == [
        Phase.RUNNING,
        Phase.ERROR,
        Phase.INCONCLUSIVE,
    ]
    live_only = [each for each in mirrored(30, OK, OK) if each.arm is Arm.STABLE]
    assert pairs_from(live_only) == ()


def test_one_reader_is_one_vote_in_shadow_too() -> None:
    rows = [replace(each, unit="one") for each in mirrored(30, OK, ERROR)]
    assert shadow(rows).phase is not Phase.FAILED


# --- plan and next action -------------------------------------------------------------


def test_plans_survive_json_and_refuse_nonsense() -> None:
    for plan in (PLAN, RolloutPlan(), replace(PLAN, shadow=None)):
        assert RolloutPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(TypeError):
        RolloutPlan.from_json({"alhpa": 0.1})
    with pytest.raises(ValueError, match="last canary step"):
        RolloutPlan(canary=(CanaryStep(0.5, 1),))
    with pytest.raises(ValueError, match="grow"):
        RolloutPlan(canary=(CanaryStep(0.5, 1), CanaryStep(0.2, 1), CanaryStep(1.0, 1)))
    with pytest.raises(ValueError, match=r"shadow\.share"):
        ShadowStep(share=0)


STATES = st.sampled_from(list(RolloutState))
PHASES = st.sampled_from([None, *Phase])
REQUESTS = st.sampled_from([None, *OperatorRequest])


@given(STATES, st.integers(0, 3), PHASES, REQUESTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_next_action_keeps_its_rules(
    state: RolloutState, step: int, phase: Phase | None, request: OperatorRequest | None, may: bool
) -> None:
    action = next_action(PLAN, state, step, phase, request, may_increase=may)
    if state.is_final:
        assert action is Action.HOLD
    elif request is OperatorRequest.ABORT:
        assert action is Action.ABORT
    elif phase is Phase.FAILED and state is not RolloutState.PLANNED:
        assert action is Action.ROLL_BACK
    if action in (Action.NEXT_STEP, Action.PROMOTE):
        assert may
        assert phase is Phase.SUCCESSFUL or state is RolloutState.PLANNED
    if action is Action.PROMOTE:
        assert (state, step) == (RolloutState.CANARY, 3)


@pytest.mark.parametrize(
    ("state", "phase", "request_", "expected"),
    [
        (RolloutState.PLANNED, None, None, Action.NEXT_STEP),
        (RolloutState.SHADOW, Phase.SUCCESSFUL, None, Action.NEXT_STEP),
        (RolloutState.SHADOW, Phase.SUCCESSFUL, OperatorRequest.PAUSE, Action.PAUSE),
        (RolloutState.CANARY, Phase.RUNNING, None, Action.HOLD),
        (RolloutState.PAUSED, Phase.SUCCESSFUL, None, Action.HOLD),
        (RolloutState.PAUSED, Phase.RUNNING, OperatorRequest.RESUME, Action.RESUME),
        (RolloutState.PAUSED, Phase.FAILED, OperatorRequest.RESUME, Action.ROLL_BACK),
    ],
)
def test_what_follows(
    state: RolloutState, phase: Phase | None, request_: OperatorRequest | None, expected: Action
) -> None:
    assert next_action(PLAN, state, 0, phase, request_) is expected
