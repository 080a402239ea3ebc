"""The circuit breaker: what opens it, for how long, and what closes it again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import Breaker, BreakerRules, Breakers, BreakerState
from gateway.errors import BusyError, ConnectError, UpstreamError, UpstreamStatusError, UpstreamTimeoutError

RULES = BreakerRules(consecutive=3, minimum=10, window=20)
DOWN = ConnectError("down")


def opened(rules: BreakerRules = RULES) -> Breaker:
    breaker = Breaker(rules, draw=lambda: 1.0)
    for _ in range(rules.consecutive):
        breaker.failed(0.0, DOWN)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(RULES)
    for now in range(8):
        breaker.failed(now, DOWN) if now % 3 else breaker.succeeded(now)
    assert breaker.allows(8)
    assert not opened().allows(0.5)


def test_a_share_of_failures_opens_it_once_there_are_enough() -> None:
    breaker = Breaker(BreakerRules(consecutive=100, minimum=10))
    for now in range(9):
        breaker.failed(now, DOWN) if now % 2 else breaker.succeeded(now)
    assert breaker.state(9) is BreakerState.CLOSED
    breaker.failed(9, UpstreamTimeoutError("slow"))
    assert breaker.state(9) is BreakerState.OPEN


def test_old_outcomes_count_no_more() -> None:
    breaker = Breaker(BreakerRules(consecutive=100, minimum=10, window_seconds=5))
    for now in range(100):
        breaker.failed(now, DOWN)
    assert breaker.allows(100)


@pytest.mark.parametrize(
    "error", [UpstreamStatusError(s, "") for s in (400, 413, 422, 429)] + [BusyError("")]
)
def test_what_says_nothing_of_the_deployment_never_opens_it(error: UpstreamError) -> None:
    breaker = Breaker(RULES)
    for _ in range(100):
        breaker.failed(0.0, error)
    assert breaker.state(1000.0) is BreakerState.CLOSED
    assert breaker.allows(1000.0)


def test_half_open_lets_one_through_and_goes_by_it() -> None:
    breaker = opened()
    assert breaker.seconds_closed_off(0.0) == 1.0
    assert [breaker.allows(1.0), breaker.allows(1.0)] == [True, False]
    breaker.failed(1.0, DOWN)
    assert [breaker.allows(2.9), breaker.allows(3.0)] == [False, True]  # twice as long
    breaker.succeeded(3.1)
    assert breaker.state(3.1) is BreakerState.CLOSED
    assert all(breaker.allows(3.2) for _ in range(3))


def test_a_lost_probe_is_replaced() -> None:
    breaker = opened()
    assert breaker.allows(1.0)
    assert not breaker.allows(30.0)
    assert breaker.allows(31.0)
    breaker.gave_up(31.5)
    assert breaker.allows(31.6)


def test_the_back_off_doubles_up_to_a_maximum_and_is_forgotten_after_a_long_peace() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(9):
        pauses.append(breaker.seconds_closed_off(now))
        now += pauses[-1]
        assert breaker.allows(now)
        breaker.failed(now, DOWN)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    now += 60
    assert breaker.allows(now)
    breaker.succeeded(now)
    for _ in range(3):
        breaker.failed(now + 100, DOWN)
    assert breaker.seconds_closed_off(now + 100) == 1.0


def test_a_retry_after_is_heeded_and_is_no_failure() -> None:
    breaker = Breaker(RULES)
    breaker.failed(0.0, UpstreamStatusError(429, "", "7"))
    assert breaker.state(6.9) is BreakerState.RESTING
    assert not breaker.allows(6.9)
    assert breaker.allows(7.0)
    breaker.failed(8.0, UpstreamStatusError(429, "", "1e9"))
    assert breaker.allows(68.0)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["ok", "down", "429", "400", "gone"])), max_size=200)
)
def test_it_always_lets_somebody_through_again(steps: list[tuple[float, str]]) -> None:
    breaker, now = Breaker(RULES), 0.0
    for passed, outcome in steps:
        now += passed
        if not breaker.allows(now):
            continue
        if outcome == "ok":
            breaker.succeeded(now)
        elif outcome == "gone":
            breaker.gave_up(now)
        else:
            breaker.failed(now, DOWN if outcome == "down" else UpstreamStatusError(int(outcome), ""))
    assert breaker.allows(now + breaker.seconds_closed_off(now) + 1e-6)


def test_breakers_are_bounded() -> None:
    breakers = Breakers(RULES, maximum=3)
    for name in "abcde":
        breakers.of(name).succeeded(0.0)
    assert set(breakers.states(0.0)) == {"c", "d", "e"}
    breakers.keep({"d"})
    assert len(breakers) == 1
    assert breakers.of("d") is breakers.of("d")
