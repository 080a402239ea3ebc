"""Checks, suites, similarity and the verdict: pure parts of an evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.checks import LONGEST_TEXT, Check, CheckError, failed_checks
from pipelines.evaluation.similarity import lexical_similarity, wilson_lower_bound
from pipelines.evaluation.suite import Suite, SuiteError
from pipelines.evaluation.summary import judge
from storage.evaluations import EvaluationCase

ROOT = Path(__file__).resolve().parents[3]
PIP = {"contains": "Pip"}
SCHEMA = {"type": "object", "required": ["title"]}


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"contains": "Pip"}, "I am Pip.", "I am pip."),
        ({"not_contains": "kill"}, "a hug", "to kill"),
        ({"ends_with": "The end."}, "So. The end.\n ", "The end. Or not"),
        ({"regex": "(?i)\\beight\\b"}, "Eight legs", "weight"),
        ({"not_regex": "(?i)as an ai"}, "a fox", "As an AI"),
        ({"min_words": 3}, "one two three", "one two"),
        ({"max_words": 2}, "one two", "one two three"),
        ({"json_schema": SCHEMA}, '{"title": "x"}', "{}"),
        ({"json_schema": SCHEMA}, ' {"title": 1}\n', "no json"),
    ],
)
def test_each_kind_of_check(check, good, bad):
    read = Check.from_json(check)
    assert read.holds(good)
    assert not read.holds(bad)
    assert read.to_json() == check
    assert failed_checks([read], bad) == [read]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"rhymes": True}, "there is no such kind"),
        ({"contains": ""}, "a piece of text"),
        ({"min_words": "3"}, "whole number"),
        ({"min_words": True}, "whole number"),
        ({"regex": "("}, "cannot be read"),
        ({"regex": "(a+)+$"}, "can take forever"),
        ({"regex": "x" * 501}, "at most 500"),
        ({"json_schema": {"type": "nonsense"}}, "no JSON Schema"),
        ({"json_schema": {"items": [{"$ref": "http://127.0.0.1:9/x.json"}]}}, "leads outside|no JSON Schema"),
        ({"json_schema": {"properties": {"a": {"$ref": "http://x/y.json"}}}}, "leads outside"),
        ({"json_schema": {"pattern": "(a+)+"}}, "can take forever"),
        ({"contains": "a", "min_words": 3}, "one pair"),
        ("contains", "one pair"),
    ],
)
def test_a_check_that_cannot_be_read_says_so(document, words):
    with pytest.raises(CheckError, match=words):
        Check.from_json(document)


def test_a_schema_reference_that_leads_nowhere_fits_nothing():
    assert not Check.from_json({"json_schema": {"$ref": "#/$defs/nowhere"}}).holds("{}")


def test_only_the_beginning_of_an_endless_answer_is_looked_at():
    assert not Check.from_json({"contains": "late"}).holds("a" * LONGEST_TEXT + "late")


def test_the_story_tellers_suite_can_be_read():
    document = yaml.safe_load((ROOT / "examples/story_teller/suite.yaml").read_text())
    suite = Suite.from_json(document)
    assert len(suite.cases) == len(document["cases"]) > 20
    assert len(suite.recorded_checks) == 3
    assert Suite.from_json(None) == Suite()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"cases": {}}, "cases is a list"),
        ({"cases": [{"messages": []}]}, "number 1 needs an id"),
        ({"cases": [{"id": "a", "messages": [], "checks": [{"contains": "x"}]}]}, "case a: messages"),
        ({"cases": [{"id": "a", "messages": [{"role": "user"}]}]}, "case a: messages"),
        ({"cases": [{"id": "a", "messages": [{"role": "user", "content": "x"}]}]}, "without checks"),
        ({"recorded_checks": [{"x": 1}]}, "recorded_checks: check x"),
        (
            {"cases": [{"id": "a", "messages": [{"role": "u", "content": ""}], "checks": [PIP]}] * 2},
            "two cases have the id 'a'",
        ),
    ],
)  # fmt: skip
def test_a_suite_that_cannot_be_read_says_where(document, words):
    with pytest.raises(SuiteError, match=words):
        Suite.from_json(document)


@given(st.integers(1, 300), st.data())
def test_wilsons_bound_lies_below_the_share_and_grows_with_hits(trials, data):
    hits = data.draw(st.integers(0, trials))
    bound = wilson_lower_bound(hits, trials)
    assert 0 <= bound <= hits / trials
    assert wilson_lower_bound(trials, trials) >= bound


@given(st.text(), st.text())
def test_lexical_similarity_is_a_symmetric_share(one, other):
    assert 0 <= lexical_similarity(one, other) == lexical_similarity(other, one) <= 1
    assert lexical_similarity(one, one) == 1


def case(number, agrees=True, candidate=True, **result):
    common = {"failed_checks": [], "blocked": False, "error": None}
    return EvaluationCase(
        id=f"case_{number}",
        evaluation_id="eval_1",
        case_id=str(number),
        origin="suite",
        messages=[],
        checks=[],
        stable_text="",
        candidate_text="",
        stable_result={"passed": True, **common},
        candidate_result={"passed": candidate, **common, **result},
        agrees=agrees,
        lexical_similarity=1.0,
        stable_latency_ms=2.0,
        candidate_latency_ms=1.0,
        stable_cost_usd=None,
        candidate_cost_usd=None,
    )


def cases(good, bad=0, **how):
    values = {"agrees": False, "candidate": False} | how
    return [case(n) for n in range(good)] + [case(1000 + n, **values) for n in range(bad)]


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (cases(20), "passed", "no worse than stable in 100.0% of 20 cases"),
        (cases(19, 1), "passed", "95.0%"),
        ([], "error", "nothing to ask"),
        (cases(9), "error", "9 cases were measured, 10 are needed"),
        (cases(11, 3, agrees=None, error="refused"), "error", r"3 of 14 .*refused"),
        (cases(12, 3, agrees=None, error="refused"), "passed", "100"),
        (cases(18, 2, failed_checks=["contains: Pip"]), "failed", "90.0% .* missed contains"),
        (cases(98, 2, blocked=True, agrees=True), "failed", "were safe"),
        (cases(97, 3, error="HTTP 502"), "failed", "failed to answer 3 of 100 cases .*502"),
        (cases(98, 2, error="HTTP 502"), "passed", "98"),
        (cases(50, 50, blocked=True, failed_checks=["contains: Pip"]), "failed", "were safe"),
    ],
)
def test_the_verdict(found, status, words):
    result = judge(found)
    assert result.status == status
    assert re.search(words, result.reason), result.reason


def test_the_summary_holds_what_policy_reads():
    summary = judge(cases(19, 1)).summary
    assert summary["cases"] == 20
    assert summary["pass_rate_stable"] == 1.0
    assert summary["pass_rate_candidate"] == summary["similarity"] == 0.95
    assert 0.7 < summary["similarity_lower_bound"] < 0.95
    assert summary["safety"] == 1.0
    assert summary["candidate"] == {"latency_p50_ms": 1.0, "latency_p95_ms": 1.0, "cost_usd": None}
