"""The bets keep their promise: seldom wrong under the null at any look, fast when it matters."""

from __future__ import annotations

import doctest
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.rollout.betting
import pipelines.rollout.next_action
import pipelines.rollout.plan
from pipelines.rollout.betting import FixedRateBet, LabelBet, LogitBet, PairBet, RestartingLabelBet, split_bet

weights = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    "module", [pipelines.rollout.betting, pipelines.rollout.plan, pipelines.rollout.next_action]
)
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@given(st.lists(st.tuples(st.booleans(), weights), max_size=30), weights)
@settings(max_examples=100, deadline=None)
def test_the_next_label_is_a_fair_game(past: list[tuple[bool, float]], weight: float) -> None:
    """Averaged over the router's coin, wealth neither grows nor shrinks when the arms are equal."""
    for make in (LabelBet, RestartingLabelBet, split_bet):
        after = []
        for candidate in (True, False):
            bet = make()
            for label, at in past:
                bet.failure(candidate=label, weight=at)
            before = bet.log_e
            bet.failure(candidate=candidate, weight=weight)
            after.append(math.exp(bet.log_e - before))
        assert weight * after[0] + (1 - weight) * after[1] == pytest.approx(1, rel=1e-6)


@given(weights, st.sampled_from([0.5, 1.0, 1.1, 2.0]))
@settings(max_examples=60, deadline=None)
def test_the_tolerated_ratio_is_where_the_game_is_fair(weight: float, rho0: float) -> None:
    chance = weight * rho0 / (weight * rho0 + 1 - weight)
    for make in (LabelBet, RestartingLabelBet):
        assert make(rho0).e_value == pytest.approx(1)
        after = []
        for candidate in (True, False):
            bet = make(rho0)
            bet.failure(candidate=candidate, weight=weight)
            after.append(bet.e_value)
        assert chance * after[0] + (1 - chance) * after[1] == pytest.approx(1, rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=25, max_size=40), weights)
@settings(max_examples=60, deadline=None)
def test_the_next_score_is_a_fair_game(past: list[float], weight: float) -> None:
    """Whatever the score turns out to be, the coin that drew its arm pays back what it takes."""
    state = LogitBet()
    for index, value in enumerate(past[:-1]):
        state.score(value, candidate=index % 3 == 0, weight=0.3)
    after = []
    for candidate in (True, False):
        bet = LogitBet.from_json(state.to_json())
        bet.score(past[-1], candidate=candidate, weight=weight)
        after.append(math.exp(min(bet.log_e - state.log_e, 700)))
    assert weight * after[0] + (1 - weight) * after[1] == pytest.approx(1, rel=1e-4)


@given(st.lists(st.tuples(st.booleans(), weights), max_size=60))
@settings(max_examples=60, deadline=None)
def test_bets_go_on_from_their_json(labels: list[tuple[bool, float]]) -> None:
    for kind in (LabelBet, RestartingLabelBet):
        whole, stored = kind(1.1), kind(1.1)
        for candidate, weight in labels:
            whole.failure(candidate=candidate, weight=weight)
            stored.failure(candidate=candidate, weight=weight)
            stored = kind.from_json(json.loads(json.dumps(stored.to_json())))
        assert stored.log_e == pytest.approx(whole.log_e)


def test_without_a_coin_nothing_is_learnt() -> None:
    bet = LabelBet()
    for weight in (0.0, 1.0):
        bet.failure(candidate=True, weight=weight)
    assert bet.log_e == pytest.approx(0)


def test_overwhelming_evidence_stays_a_number() -> None:
    bet = LabelBet()
    for _ in range(5000):
        bet.failure(candidate=True, weight=0.1)
    assert math.isfinite(bet.e_value)
    assert json.loads(json.dumps(bet.to_json()))


def test_a_restart_finds_a_late_fault_sooner() -> None:
    """After many healthy failures, the plain bet has to earn back what it lost."""
    plain, restarting = LabelBet(), RestartingLabelBet()
    rng = random.Random(1)
    for _ in range(200):
        label = rng.random() < 0.02
        plain.failure(candidate=label, weight=0.1)
        restarting.failure(candidate=label, weight=0.1)
    for _ in range(25):
        plain.failure(candidate=True, weight=0.1)
        restarting.failure(candidate=True, weight=0.1)
    assert restarting.log_e > plain.log_e


def wealth_of_logit(rng: random.Random, factor: float, count: int, weight: float = 0.1) -> float:
    bet, most = LogitBet(), 0.0
    for _ in range(count):
        candidate = rng.random() < weight
        value = rng.lognormvariate(0, 0.6) * (factor if candidate else 1)
        bet.score(math.log(value), candidate=candidate, weight=weight)
        most = max(most, bet.e_value)
    return most


def test_latency_is_seldom_wrong_and_finds_twice_as_slow() -> None:
    rng = random.Random(7)
    wrong = sum(wealth_of_logit(rng, 1.0, 250) >= 20 for _ in range(120))
    found = sum(wealth_of_logit(rng, 2.0, 400) >= 100 for _ in range(20))
    assert wrong <= 120 * 0.05 + 4
    assert found >= 18


def test_pairs_find_a_slower_candidate_and_spare_an_equal_one() -> None:
    rng = random.Random(3)
    equal, slower = PairBet(), PairBet()
    most = 0.0
    for _ in range(400):
        noise = rng.gauss(0, 0.5)
        equal.difference(noise)
        slower.difference(noise + 0.4)
        most = max(most, equal.e_value)
    assert most < 100
    assert slower.e_value > 1e4


def test_a_fixed_rate_is_seldom_wrong_and_finds_a_broken_arm() -> None:
    rng = random.Random(5)

    def most(rate: float, count: int) -> float:
        bet, top = FixedRateBet(0.05), 0.0
        for _ in range(count):
            bet.outcome(failed=rng.random() < rate)
            top = max(top, bet.e_value)
        return top

    assert sum(most(0.05, 300) >= 20 for _ in range(300)) <= 300 * 0.05 + 8
    assert all(most(0.5, 40) >= 1000 for _ in range(20))


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_must_be_possible(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        FixedRateBet(rate)


def test_the_split_bet_sees_an_arm_that_gets_too_little_or_too_much() -> None:
    for share in (0.02, 0.5):
        rng, bet = random.Random(2), split_bet()
        for _ in range(600):
            bet.failure(candidate=rng.random() < share, weight=0.2)
        assert bet.e_value > 1e4
