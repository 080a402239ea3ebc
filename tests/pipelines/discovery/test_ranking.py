"""The pure ranking: constraints with reasons, an exact order, and what must hold for every catalogue."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.discovery.constraints import ConstraintsError, Demands, Exclusion, Situation
from pipelines.discovery.evidence import Measured
from pipelines.discovery.posterior import Posterior, beta_below, beta_quantile
from pipelines.discovery.rank import TokenProfile, describe, rank_offerings
from storage.registry import Offering

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PROFILE = TokenProfile(monthly_requests=Decimal(1000))
SITUATION = Situation(now=NOW, demands=Demands(), current=("lab", "big"))


def offering(name="m", **changes):
    values = {
        "id": f"off_{name}", "source": "lab", "external_id": name, "provider": "lab", "model": name,
        "reachable": True, "price_input": Decimal("0.000001"), "price_output": Decimal("0.000002"),
        "context_tokens": 8192, "output_tokens": None, "capabilities": ["streaming"], "lifecycle": "active",
        "retires_at": None, "payload_digest": "", "payload": {}, "first_seen_at": NOW, "last_seen_at": NOW,
        "scans_missed": 0,
    }  # fmt: skip
    return Offering(**(values | changes))


def measured(passes, cases, *, passed=True, why_not=None):
    return Measured(
        evaluation_id="eval_1", release_id="rel_1", passed=passed, passes=passes, cases=cases, why_not=why_not
    )


def rank(offerings, *, situation=SITUATION, profile=PROFILE, **more):
    return rank_offerings(offerings, situation=situation, profile=profile, **more)


@pytest.mark.parametrize(
    ("changes", "situation", "reason"),
    [
        ({"reachable": False}, {}, "unreachable"),
        ({"lifecycle": "missing"}, {}, "missing"),
        ({"lifecycle": "retired"}, {}, "retired"),
        ({"retires_at": NOW - timedelta(days=1)}, {}, "retired"),
        ({"retires_at": NOW + timedelta(days=90)}, {}, "retiring_soon"),
        ({"model": "big"}, {}, "current_model"),
        ({"provider": "other"}, {"demands": Demands(providers=frozenset({"lab"}))}, "provider_not_allowed"),
        ({"context_tokens": None}, {"demands": Demands(context=1)}, "context_unknown"),
        ({}, {"demands": Demands(context=8193)}, "context_too_small"),
        ({}, {"demands": Demands(capabilities=frozenset({"vision"}))}, "capability_missing"),
        ({"price_output": None}, {}, "price_unknown"),
        ({}, {"demands": Demands(max_price_output=Decimal("0.0000019"))}, "over_price_limit"),
        (
            {},
            {"budget_usd_per_month": Decimal("0.69"), "monthly_requests": Decimal(1000)},
            "over_budget",
        ),
        ({}, {"failed": frozenset({"off_m"})}, "failed_recently"),
        ({}, {"rolled_back": frozenset({("lab", "m")})}, "rolled_back_recently"),
    ],
)
def test_every_exclusion_has_its_reason_and_its_words(changes, situation, reason):
    result = rank([offering(**changes)], situation=replace(SITUATION, **situation))
    assert result.candidates == ()
    excluded = result.excluded_json()
    assert excluded["counts"] == {reason: 1}
    [example] = excluded["examples"][reason]
    assert example["why"]
    assert example["name"] == f"{changes.get('provider', 'lab')}/{changes.get('model', 'm')}"


def test_just_within_every_limit_is_a_candidate():
    demands = Demands.from_json({"context": 8192, "capabilities": ["streaming"], "providers": ["lab"],
                                 "max_price_input": "0.000001", "max_price_output": 0.000002})  # fmt: skip
    situation = replace(
        SITUATION, demands=demands, budget_usd_per_month=Decimal("0.7"), monthly_requests=Decimal(1000)
    )
    ends = NOW + timedelta(days=91)
    assert len(rank([offering(retires_at=ends)], situation=situation).candidates) == 1


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"colour": "red"}, "not known; known: capabilities, context"),
        ({"context": "8k"}, "whole number of tokens"),
        ({"capabilities": "vision"}, "list of names"),
        ({"max_price_input": "cheap"}, "US dollars per token"),
    ],
)
def test_constraints_that_cannot_be_read_are_errors(document, words):
    with pytest.raises(ConstraintsError, match=words):
        Demands.from_json(document)


def test_a_candidate_is_described_with_its_saving_and_its_list():
    cheap = offering("cheap")
    result = rank(
        [cheap], stable_prices=(Decimal("0.000003"), Decimal("0.000015")),
        measured={"off_cheap": measured(58, 60)},
    )  # fmt: skip
    told = describe(result.candidates[0], result.stable_cost, PROFILE.monthly_requests)
    assert told["cost_per_request_usd"] == pytest.approx(0.0007)
    assert told["saving_share"] == pytest.approx(1 - 0.0007 / 0.0039, abs=1e-6)
    assert told["expected_monthly_saving_usd"] == pytest.approx(3.2)
    assert told["list"] == "deployable"
    assert told["quality"] == {
        "kind": "measured", "mean": pytest.approx(64.4 / 68, abs=1e-6),
        "lower_bound": told["quality"]["lower_bound"], "passes": 58, "cases": 60,
    }  # fmt: skip
    assert told["quality"]["lower_bound"] < told["quality"]["mean"]
    assert "82% less than what serves now; passed its evaluation here, 58 of 60" in told["why"]


def test_old_or_missing_evidence_is_worth_measuring_only():
    stale = measured(60, 60, why_not="on a suite that has changed since")
    result = rank([offering("a"), offering("b")], measured={"off_a": stale})
    told = [describe(each, result.stable_cost, PROFILE.monthly_requests) for each in result.candidates]
    assert [each["list"] for each in told] == ["worth_measuring"] * 2
    assert "suite that has changed" in told[0]["why"]
    assert told[0]["quality"]["kind"] == "prior"
    assert told[0]["saving_share"] is None


def test_more_candidates_than_anybody_reads_are_counted():
    result = rank([offering(f"m{n:03}") for n in range(120)], most=100)
    assert len(result.candidates) == 100
    assert result.counts == {Exclusion.OUTRANKED: 20}
    assert len(result.examples[Exclusion.OUTRANKED]) == 10


def test_five_thousand_offerings_are_ranked_in_a_moment():
    dice = random.Random(7)
    many = [
        offering(
            f"m{n}", reachable=n % 2 == 0, context_tokens=dice.choice([None, 4096, 200_000]),
            price_input=Decimal(dice.randint(1, 9999)).scaleb(-9),
            price_output=Decimal(dice.randint(1, 9999)).scaleb(-9),
        )
        for n in range(5000)
    ]  # fmt: skip
    evidence = {f"off_m{n}": measured(n % 60, 60) for n in range(0, 5000, 10)}
    situation = replace(SITUATION, demands=Demands(context=8000, capabilities=frozenset({"streaming"})))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        rank(many, situation=situation, measured=evidence)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.2, f"took {min(times):.3f} s"


PRICES = st.integers(1, 10_000).map(lambda n: Decimal(n).scaleb(-9))
SPECS = st.lists(
    st.tuples(PRICES, PRICES, st.none() | st.tuples(st.integers(0, 40), st.integers(40, 60))),
    min_size=2, max_size=12,
)  # fmt: skip


def built(specs, factor=Decimal(1)):
    offerings = [
        offering(f"m{n:02}", price_input=spec[0] * factor, price_output=spec[1] * factor)
        for n, spec in enumerate(specs)
    ]
    evidence = {f"off_m{n:02}": measured(*spec[2]) for n, spec in enumerate(specs) if spec[2]}
    return offerings, evidence


def names(result):
    return [each.offering.model for each in result.candidates]


@given(SPECS, st.randoms())
def test_the_order_does_not_depend_on_the_order_of_arrival(specs, dice):
    offerings, evidence = built(specs)
    shuffled = list(offerings)
    dice.shuffle(shuffled)
    assert names(rank(offerings, measured=evidence)) == names(rank(shuffled, measured=evidence))


@given(SPECS, st.sampled_from([Decimal("0.001"), Decimal("0.92"), Decimal(7), Decimal(1000)]))
def test_the_order_does_not_depend_on_the_currency(specs, factor):
    first, second = built(specs), built(specs, factor)
    stable = (Decimal("0.000003"), Decimal("0.000015"))
    before = rank(first[0], measured=first[1], stable_prices=stable)
    after = rank(second[0], measured=second[1], stable_prices=(stable[0] * factor, stable[1] * factor))
    assert names(before) == names(after)
    shares = [
        [describe(each, result.stable_cost, Decimal(1))["saving_share"] for each in result.candidates]
        for result in (before, after)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=2e-6)


@given(SPECS)
def test_what_is_worse_in_everything_never_comes_first(specs):
    offerings, evidence = built(specs)
    ranked = rank(offerings, measured=evidence).candidates
    for place, ahead in enumerate(ranked):
        for behind in ranked[place + 1 :]:
            no_worse = behind.cost <= ahead.cost and behind.quality.mean >= ahead.quality.mean
            better = behind.cost < ahead.cost or behind.quality.mean > ahead.quality.mean
            assert not (no_worse and better)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_posterior_moves_with_the_evidence(passes, failures):
    belief = Posterior.after(passes=passes, cases=passes + failures)
    assert 0 < belief.lower_bound < belief.mean < 1
    assert Posterior.after(passes=passes + 1, cases=passes + failures + 1).mean > belief.mean
    assert Posterior.after(passes=passes, cases=passes + failures + 1).mean < belief.mean


def test_the_beta_distribution_against_known_values():
    # The first is a sum of three binomial terms, the second solves such a sum, the third is a symmetry.
    assert beta_below(0.3, 2, 3) == pytest.approx(0.3483, abs=1e-9)
    assert beta_quantile(0.05, 2, 5) == pytest.approx(0.06284989, abs=1e-7)
    assert beta_below(0.5, 50, 50) == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(ValueError, match="cannot have passed"):
        Posterior.after(passes=2, cases=1)
