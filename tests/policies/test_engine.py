"""The guard holds its rules: properties over random facts, and stories one by one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.engine import judge
from policies.facts import NEVER_HOURS, Facts
from policies.loader import DEFAULT_PATH, load_policy
from policies.policy import TOOLS, Autonomy, Gate
from policies.table import good_facts
from policies.verdict import Verdict, severity
from storage.vocabulary import EvaluationStatus, Risk, Role, VerdictOutcome

ALLOW, ASK, DENY = VerdictOutcome.ALLOW, VerdictOutcome.REQUIRE_APPROVAL, VerdictOutcome.DENY
POLICY = load_policy(DEFAULT_PATH)
GOOD = good_facts(POLICY, "story-teller", Risk.MEDIUM)

#: Fact, and its values from the best to the worst.
WORSE: dict[str, list[object]] = {
    "actions_last_day": [0, 3, 4, 1000],
    "spend_month_usd": [0.0, 84.0, 94.0, 500.0],
    "reserved_usd": [0.0, 89.0, 500.0],
    "expected_cost_usd": [0.0, 85.0, 85.01],
    "hours_since_last_rollout_ended": [NEVER_HOURS, 6.0, 5.9, 0.0],
    "hours_since_last_rollback": [NEVER_HOURS, 24.0, 23.9, 0.0],
    "hours_since_rejection": [NEVER_HOURS, 24.0, 23.9, 0.0],
    "evaluation_age_hours": [0.0, 24.0, 24.1],
    "evaluation_cases": [1000, 50, 49, 0],
    "similarity": [1.0, 0.95, 0.949, 0.0],
    "safety": [1.0, 0.99, 0.98, 0.0],
    "pass_rate_candidate": [1.0, 0.98, 0.97, 0.0],
    "candidate_retires_in_days": [None, 30.0, 29.0, 0.0],
    "candidate_price_known": [True, False],
    "candidate_is_meta_model": [False, True],
    "resulting_share": [0.0, 0.5, 1.0],
    "rollbacks_last_day": [0, 2, 3, 9],
    "target_known_good": [True, False],
    "alert_open": [True, False],
    "agent_paused": [False, True],
    "evaluation_status": [EvaluationStatus.PASSED, EvaluationStatus.FAILED],
    "risk": [Risk.LOW, Risk.MEDIUM, Risk.HIGH],
}
#: Facts that a deploy can do without: safety tools need them, or no date is a known answer.
NOT_NEEDED = {"candidate_retires_in_days", "risk", "target_known_good", "alert_open", "rollbacks_last_day"}
NEEDED_BY_DEPLOY = sorted(set(WORSE) - NOT_NEEDED)


@st.composite
def worsened(draw: st.DrawFn) -> tuple[Facts, Facts]:
    """Two states of the world, the second no better in any fact."""
    better: dict[str, object] = {}
    worse: dict[str, object] = {}
    # Few facts move at once: with many, almost everything is denied for another reason.
    for name in draw(st.lists(st.sampled_from(sorted(WORSE)), min_size=1, max_size=3, unique=True)):
        values = WORSE[name]
        low = draw(st.integers(0, len(values) - 1))
        better[name], worse[name] = values[low], values[draw(st.integers(low, len(values) - 1))]
    return replace(GOOD, **better), replace(GOOD, **worse)


@given(st.sampled_from(TOOLS), worsened())
@settings(max_examples=300, deadline=None)
def test_worse_facts_never_loosen(tool: str, states: tuple[Facts, Facts]) -> None:
    before, after = (judge(POLICY, tool, facts) for facts in states)
    assert severity(after.outcome) >= severity(before.outcome)
    if after.outcome is before.outcome:
        assert after.approvals_needed >= before.approvals_needed


@pytest.mark.parametrize("name", NEEDED_BY_DEPLOY)
def test_an_unknown_fact_denies_a_deploy(name: str) -> None:
    assert judge(POLICY, "deploy", GOOD).outcome is ASK
    assert judge(POLICY, "deploy", replace(GOOD, **{name: None})).outcome is DENY


@given(st.text(max_size=20).filter(lambda text: text not in TOOLS))
@settings(max_examples=100, deadline=None)
def test_what_is_not_listed_is_denied(tool: str) -> None:
    verdict = judge(POLICY, tool, GOOD)
    assert verdict.outcome is DENY
    assert [check.rule for check in verdict.fired] == ["listed"]


def test_names_match_exactly() -> None:
    assert all(judge(POLICY, name, GOOD).outcome is DENY for name in ("Deploy", "deploy ", "dеploy"))


def test_risk_decides_how_many_people() -> None:
    verdicts = [judge(POLICY, "deploy", replace(GOOD, risk=risk)) for risk in Risk]
    assert [verdict.outcome for verdict in verdicts] == [ALLOW, ASK, ASK]
    assert [verdict.approvals_needed for verdict in verdicts] == [0, 1, 2]
    assert verdicts[1].roles == (Role.APPROVER, Role.ADMIN)


def test_a_use_case_can_ask_for_more_people_and_the_tier_names_them() -> None:
    text = DEFAULT_PATH.read_text()
    text = text.replace(
        "four_eyes: {approvals: 2, roles: [approver, admin]}", "four_eyes: {approvals: 2, roles: [admin]}"
    )
    policy = load_policy(
        text.replace("use_cases: {}", "use_cases: {story-teller: {at_least: {deploy: four_eyes}}}")
    )
    for risk in Risk:
        verdict = judge(policy, "deploy", replace(GOOD, risk=risk))
        assert (verdict.approvals_needed, verdict.roles) == (2, (Role.ADMIN,))
    assert judge(policy, "deploy", replace(GOOD, use_case="other")).approvals_needed == 1


def test_every_rule_that_fires_is_reported() -> None:
    verdict = judge(POLICY, "deploy", replace(GOOD, similarity=0.5, spend_month_usd=99.0))
    assert {check.rule for check in verdict.fired} == {"tier", "quality.similarity", "budget"}
    assert "0.5" in verdict.why


def test_code_keeps_its_floor_when_a_policy_object_does_not() -> None:
    limits = replace(POLICY.base.limits, min_similarity=0.5)
    deploy = replace(POLICY.tools["deploy"], requires=(), safety=True)
    tools = {**POLICY.tools, "deploy": deploy}
    loose = replace(POLICY, base=replace(POLICY.base, limits=limits), tools=tools)
    assert judge(loose, "deploy", replace(GOOD, similarity=0.949)).outcome is DENY
    assert judge(loose, "deploy", replace(GOOD, candidate_is_meta_model=True)).outcome is DENY
    assert deploy.gates == frozenset(Gate)


def test_a_rule_that_breaks_denies() -> None:
    broken = replace(POLICY, tiers={})
    verdict = judge(broken, "scan", GOOD)
    assert verdict.outcome is DENY
    assert verdict.fired[0].rule == "error"
    assert "KeyError" in verdict.why


@pytest.mark.parametrize("tool", TOOLS)
def test_a_paused_agent_may_only_go_back(tool: str) -> None:
    facts = replace(GOOD, agent_paused=True, rollout_active=tool == "abort", risk=Risk.LOW)
    expected = ALLOW if tool in ("rollback", "abort") else DENY
    assert judge(POLICY, tool, facts).outcome is expected


@pytest.mark.parametrize(
    ("level", "test", "scan", "rollback"),
    [
        (Autonomy.OBSERVE, DENY, ALLOW, ASK),
        (Autonomy.PROPOSE, ASK, ALLOW, ASK),
        (Autonomy.ACT_WITH_APPROVAL, ALLOW, ALLOW, ALLOW),
        (Autonomy.ACT, ALLOW, ALLOW, ALLOW),
    ],
)
def test_autonomy(
    level: Autonomy, test: VerdictOutcome, scan: VerdictOutcome, rollback: VerdictOutcome
) -> None:
    policy = replace(POLICY, base=replace(POLICY.base, autonomy=level))
    found = [judge(policy, tool, GOOD).outcome for tool in ("test", "scan", "rollback")]
    assert found == [test, scan, rollback]


def test_full_autonomy_waives_one_approval_and_never_two() -> None:
    policy = replace(POLICY, base=replace(POLICY.base, autonomy=Autonomy.ACT))
    outcomes = [judge(policy, "deploy", replace(GOOD, risk=risk)).outcome for risk in Risk]
    assert outcomes == [ALLOW, ALLOW, ASK]


def test_a_cap_only_lowers_autonomy() -> None:
    assert POLICY.capped(Autonomy.OBSERVE).base.autonomy is Autonomy.OBSERVE
    assert POLICY.capped(Autonomy.ACT).base.autonomy is Autonomy.ACT_WITH_APPROVAL
    assert POLICY.capped(Autonomy.OBSERVE).digest != POLICY.digest


@given(
    alert=st.sampled_from([True, False, None]),
    target=st.sampled_from([True, False, None]),
    flaps=st.sampled_from([None, 0, 2, 3, 50]),
    count=st.sampled_from([None, 0, 19, 20, 999]),
    paused=st.sampled_from([True, False, None]),
    who=st.sampled_from([True, False, None]),
)
@settings(max_examples=200, deadline=None)
def test_going_back_is_never_denied(
    alert: bool | None,
    target: bool | None,
    flaps: int | None,
    count: int | None,
    paused: bool | None,
    who: bool | None,
) -> None:
    facts = replace(
        GOOD, alert_open=alert, target_known_good=target, rollbacks_last_day=flaps, actions_last_day=count,
        agent_paused=paused, proposer_is_agent=who, budget_usd_month=None,
    )  # fmt: skip
    alone = alert is True and target is True and flaps in (0, 2) and count in (0, 19) and who is not None
    verdict = judge(POLICY, "rollback", facts)
    assert verdict.outcome is (ALLOW if alone else ASK)
    assert verdict.approvals_needed == (0 if alone else 1)


def test_a_person_aborts_alone_and_the_agent_needs_an_alert() -> None:
    facts = replace(GOOD, rollout_active=True, alert_open=False)
    assert judge(POLICY, "abort", replace(facts, proposer_is_agent=False)).outcome is ALLOW
    assert judge(POLICY, "abort", replace(facts, proposer_is_agent=True)).outcome is ASK


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "3", True])
@pytest.mark.parametrize("name", ["expected_cost_usd", "similarity", "evaluation_cases"])
def test_facts_that_mean_nothing_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(GOOD, **{name: value})


def test_facts_need_a_time_zone_and_shares_end_at_one() -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(GOOD, now=GOOD.now.replace(tzinfo=None))
    with pytest.raises(ValueError, match="share"):
        replace(GOOD, similarity=1.01)


def test_facts_and_verdicts_survive_json() -> None:
    verdict = judge(POLICY, "deploy", GOOD)
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert Facts.from_json(GOOD.to_json()) == GOOD
    assert Facts(now=datetime(2026, 1, 1, tzinfo=UTC), use_case="x", risk=Risk.LOW).similarity is None


def test_the_engine_needs_nothing_but_the_standard_library() -> None:
    root = Path(__file__).parents[2]
    code = (
        f"import sys; sys.path.append({str(root)!r}); import policies.engine, policies.table; "
        "bad = {'pydantic', 'yaml', 'sqlalchemy', 'asyncio', 'storage.tables'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)
