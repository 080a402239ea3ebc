"""What is asked next, as a table."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BusyError,
    ConnectError,
    InvalidAnswerError,
    NotConfiguredError,
    StreamBrokenError,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from gateway.retrying import GIVE_UP, Again, AskNext, Failure, line_of, next_step
from storage.routing import DeploymentSpec, Fallback, Route, RouteArm, Waiting
from storage.vocabulary import Arm, AssignmentUnit


def deployment(name: str) -> DeploymentSpec:
    return DeploymentSpec(name, "p", "m", {}, None, "default", Decimal(0), Decimal(0))


def fallback(name: str) -> Fallback:
    return Fallback(f"rel_{name}", deployment(name))


def status(code: int, retry_after: str | None = None) -> UpstreamStatusError:
    return UpstreamStatusError(code, "", retry_after)


def failure(error: UpstreamError, **changes: Any) -> Failure:
    values = {"attempts": 1, "arm": Arm.STABLE, "elapsed": 0.1, "waiting": Waiting(), **changes}
    return Failure(error=error, **values)


NEXT = fallback("next")
SAFE = [ConnectError(""), status(502), status(503), status(529), status(429, "0.5")]
UNSAFE = [
    UpstreamTimeoutError(""), InvalidAnswerError(""), StreamBrokenError(""),
    NotConfiguredError(""), BusyError(""),
    status(500), status(504), status(401), status(404), status(429), status(429, "5"), status(503, "9"),
]  # fmt: skip
OURS = [status(400), status(413), status(422)]


@pytest.mark.parametrize("error", SAFE, ids=str)
def test_what_did_nothing_is_asked_again_then_the_next(error: UpstreamError) -> None:
    step = next_step(failure(error), [NEXT], 0.5)
    assert isinstance(step, Again)
    assert step.seconds == pytest.approx(0.55 if error.status == 429 else 0.05)
    assert next_step(failure(error, attempts=2), [NEXT], 0.5) == AskNext(NEXT)
    assert next_step(failure(error, attempts=2), [], 0.5) == GIVE_UP
    assert next_step(failure(error, may_ask_again=False), [NEXT], 0.5) == AskNext(NEXT)
    assert isinstance(next_step(failure(error, arm=None), [NEXT], 0.5), Again)
    assert next_step(failure(error, arm=None, attempts=2), [NEXT], 0.5) == GIVE_UP


@pytest.mark.parametrize("error", UNSAFE, ids=str)
def test_what_may_have_done_something_is_not_asked_again(error: UpstreamError) -> None:
    assert next_step(failure(error), [NEXT], 0.5) == AskNext(NEXT)
    assert next_step(failure(error), [], 0.5) == GIVE_UP
    assert next_step(failure(error, arm=None), [NEXT], 0.5) == GIVE_UP
    assert next_step(failure(error, arm=Arm.SHADOW), [NEXT], 0.5) == GIVE_UP


@pytest.mark.parametrize("error", OURS, ids=str)
def test_the_callers_faults_go_straight_back(error: UpstreamError) -> None:
    assert next_step(failure(error), [NEXT], 0.5) == GIVE_UP


@given(
    error=st.sampled_from(SAFE + UNSAFE + OURS),
    attempts=st.integers(1, 5),
    arm=st.sampled_from([None, *Arm]),
    elapsed=st.floats(0, 20),
    total=st.none() | st.floats(0.1, 20),
    retries=st.integers(0, 3),
    began=st.booleans(),
    random=st.floats(0, 1, exclude_max=True),
)
def test_the_rules_that_hold_always(
    error: UpstreamError, attempts: int, arm: Arm | None, elapsed: float, total: float | None,
    retries: int, began: bool, random: float,
) -> None:  # fmt: skip
    waiting = Waiting(total_seconds=total, retries=retries)
    made = failure(error, attempts=attempts, arm=arm, elapsed=elapsed, waiting=waiting, began=began)
    step = next_step(made, [NEXT], random)
    if began or (total is not None and elapsed >= total):
        assert step == GIVE_UP
    if isinstance(step, Again):
        assert error in SAFE
        assert attempts <= retries
        assert 0 <= step.seconds <= 3
        assert total is None or elapsed + step.seconds < total
    if isinstance(step, AskNext):
        assert arm in (Arm.STABLE, Arm.CANDIDATE)


def test_stable_answers_for_a_candidate_and_nobody_is_asked_twice() -> None:
    arms = tuple(RouteArm(arm, f"rel_{arm}", deployment(arm), 0.5) for arm in (Arm.STABLE, Arm.CANDIDATE))
    route = Route("u", 1, "s", None, AssignmentUnit.REQUEST, arms)
    spare, again = fallback("spare"), fallback("stable")

    def names(arm: Arm | None, *asked: str) -> list[str]:
        return [each.deployment.id for each in line_of(arm, route, [spare, again], asked)]

    assert names(Arm.CANDIDATE, "candidate") == ["stable", "spare"]
    assert names(Arm.CANDIDATE, "candidate", "stable") == ["spare"]
    assert names(Arm.STABLE, "stable") == ["spare"]
    assert names(None) == names(Arm.SHADOW) == []
