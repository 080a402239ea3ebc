"""What facts mean: tables, and properties that hold for any facts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meta_agent.signals import MIN_UNITS, Signal, SignalKind, assess, rate_at_least
from storage.vocabulary import EvaluationStatus, RolloutState, Severity

from .worlds import (
    NOW,
    degraded,
    evaluation,
    fleet_facts,
    health,
    ranking,
    rollout,
    stable,
    use_case,
)


def kinds(facts) -> list[SignalKind]:
    return [each.kind for each in assess(facts)]


def test_a_quiet_fleet_has_no_signals():
    assert assess(fleet_facts(use_case())) == ()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (fleet_facts(use_case(), scan_age=None), [SignalKind.CATALOGUE_STALE]),
        (fleet_facts(use_case(), scan_age=3601.0), [SignalKind.CATALOGUE_STALE]),
        (fleet_facts(use_case(ranking=None, ranking_is_current=False)), [SignalKind.CATALOGUE_CHANGED]),
        (fleet_facts(use_case(ranking=ranking(0.1))), []),
        (fleet_facts(use_case(ranking=ranking(0.2))), [SignalKind.CHEAPER_CANDIDATE_UNTESTED]),
        (fleet_facts(use_case(ranking=ranking(None))), []),
        (
            fleet_facts(use_case(ranking=ranking(0.5), evaluations=(evaluation(),))),
            [SignalKind.CANDIDATE_PROVEN],
        ),
        (  # a pass that policy finds too old is no evidence: test again
            fleet_facts(use_case(ranking=ranking(0.5), evaluations=(evaluation(age_hours=25.0),))),
            [SignalKind.CHEAPER_CANDIDATE_UNTESTED],
        ),
        (  # it had its rollout, whatever came of it
            fleet_facts(use_case(ranking=ranking(0.5), evaluations=(evaluation(was_rolled_out=True),))),
            [],
        ),
        (
            fleet_facts(
                use_case(
                    ranking=ranking(0.5),
                    evaluations=(evaluation(status=EvaluationStatus.FAILED, age_hours=100.0),),
                )
            ),
            [],
        ),
        (fleet_facts(use_case(active_rollout=rollout())), [SignalKind.ROLLOUT_RUNNING]),
        (
            fleet_facts(use_case(last_rollout=rollout(RolloutState.ROLLED_BACK))),
            [SignalKind.ROLLOUT_ROLLED_BACK],
        ),
        (fleet_facts(use_case(last_rollout=rollout(RolloutState.ROLLED_BACK, age=90_000))), []),
        (fleet_facts(use_case(stable=degraded())), [SignalKind.STABLE_DEGRADED]),
        (fleet_facts(use_case(stable=stable(recent=health(60, 60)))), []),  # nothing to go back to
        (
            fleet_facts(use_case(budget_month_usd=100.0, spend_month_usd=60.0)),
            [SignalKind.BUDGET_BURN],  # half the month is over: 120 % by its end
        ),
        (fleet_facts(use_case(budget_month_usd=100.0, spend_month_usd=40.0)), []),
        (
            fleet_facts(use_case(budget_month_usd=100.0, spend_month_usd=5.0, month_elapsed_share=0.02)),
            [],
        ),
        (
            fleet_facts(use_case(stable=stable(retires_at=NOW + timedelta(days=60)))),
            [SignalKind.SUNSET_AHEAD],
        ),
        (  # with a sunset ahead, a dearer candidate is worth a test too
            fleet_facts(use_case(stable=stable(retires_at=NOW + timedelta(days=10)), ranking=ranking(-0.1))),
            [SignalKind.SUNSET_AHEAD, SignalKind.CHEAPER_CANDIDATE_UNTESTED],
        ),
    ],
)
def test_facts_and_their_signals(facts, expected):
    assert kinds(facts) == expected


def test_a_retirement_within_the_horizon_is_severe():
    facts = fleet_facts(use_case(stable=stable(retires_at=NOW + timedelta(days=10))))
    assert assess(facts)[0].severity is Severity.HIGH


def test_a_rate_over_its_limit_without_proof_is_no_alert():
    facts = fleet_facts(use_case(stable=stable(rollback_release_id="rel_before", recent=health(60, 20))))
    (signal,) = assess(facts)
    assert (signal.kind, signal.alert) == (SignalKind.STABLE_DEGRADED, False)


@given(failures=st.integers(0, 500), more=st.integers(0, 500), units=st.integers(0, 1000))
def test_the_lower_bound_never_exceeds_the_rate(failures: int, more: int, units: int):
    requests = failures + more
    bound = rate_at_least(failures, requests, units)
    assert 0.0 <= bound <= (failures / requests if requests else 0.0) + 1e-9


@given(failures=st.integers(0, MIN_UNITS - 1), ratio=st.floats(0, 0.5))
def test_few_units_never_say_degraded(failures: int, ratio: float):
    few = health(MIN_UNITS - 1, failures)
    facts = fleet_facts(
        use_case(
            stable=stable(
                rollback_release_id="rel_before",
                recent=few,
                since_promotion=few,
                baseline_failure_rate=ratio,
            )
        )
    )
    assert assess(facts) == ()


@given(
    savings=st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=6),
    scan_age=st.one_of(st.none(), st.floats(0, 1e6)),
    current=st.booleans(),
    tested=st.sets(st.integers(0, 5)),
)
def test_properties_of_assess(savings, scan_age, current, tested):
    facts = fleet_facts(
        use_case(
            ranking=ranking(*savings),
            ranking_is_current=current,
            evaluations=tuple(evaluation(f"off_{number}") for number in sorted(tested)),
        ),
        scan_age=scan_age,
    )
    signals = assess(facts)
    assert signals == assess(facts)
    assert [Signal.from_json(each.to_json()) for each in signals] == list(signals)
    assert sorted(signals, key=lambda each: not each.alert) == list(signals)
    untested = [each for each in signals if each.kind is SignalKind.CHEAPER_CANDIDATE_UNTESTED]
    assert all(each.numbers["saving_share"] >= facts.min_saving_share for each in untested)
    assert not {each.subject for each in untested} & {f"off_{number}" for number in tested}
    offered = [each.numbers["saving_share"] for each in untested]
    assert offered == sorted(offered, reverse=True)
