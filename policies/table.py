"""The test table of a policy, generated from the policy.

For every tool, use case and risk: all good gives the expected tier; exactly one fact just
past its limit fires that rule and no other; exactly at the limit passes; unknown is never
allowed. Random facts almost always fail for several reasons at once and hide a broken rule
behind another; one fact at a time does not. The expectations are written here and not taken
from the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from policies.engine import judge
from policies.facts import NEVER_HOURS, Facts
from policies.policy import OBSERVING_TOOLS, SIMILARITY_FLOOR, Autonomy, Blackout, Gate, Policy
from policies.verdict import Verdict, worst
from storage.vocabulary import EvaluationStatus, Risk, VerdictOutcome

ALLOW, ASK, DENY = VerdictOutcome.ALLOW, VerdictOutcome.REQUIRE_APPROVAL, VerdictOutcome.DENY
#: Stands in the table for every use case that the policy does not name.
ANY_USE_CASE = "any-other"
_START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
_STEP = 1e-6  # just past a limit

Judge = Callable[[Policy, str, Facts], Verdict]


@dataclass(frozen=True)
class Row:
    """One line of the table: what was changed, what must follow, what did follow."""

    tool: str
    use_case: str
    risk: Risk
    case: str
    expected: VerdictOutcome
    expected_fired: frozenset[str]
    outcome: VerdictOutcome
    fired: frozenset[str]
    exact: bool  #: whether no other rule may fire (not asked of unknown facts)

    @property
    def ok(self) -> bool:
        """Whether the engine said what the policy means."""
        rules = self.fired == self.expected_fired if self.exact else self.fired >= self.expected_fired
        return self.outcome is self.expected and rules


@dataclass(frozen=True)
class _Change:
    """One fact moved, and the rule that must notice (none: everything must still hold)."""

    case: str
    rule: str | None
    effect: VerdictOutcome
    facts: Mapping[str, Any]
    exact: bool = True


def check_policy(policy: Policy, judge: Judge = judge) -> list[Row]:
    """Judge every row of the table; the policy is sound when every row is ok."""
    rows: list[Row] = []
    for use_case in (*policy.use_cases, ANY_USE_CASE):
        for risk in Risk:
            for tool in policy.tools:
                rows.extend(_rows(policy, judge, tool, use_case, risk))
            rows.append(_unlisted(policy, judge, use_case, risk))
    return rows


def good_facts(policy: Policy, use_case: str, risk: Risk) -> Facts:
    """Facts under which nothing but the tier can ask for a person."""
    return Facts(
        now=_quiet_moment(policy, use_case),
        use_case=use_case,
        risk=risk,
        proposer_is_agent=policy.rules_for(use_case).autonomy.rank > Autonomy.PROPOSE.rank,
        agent_paused=False,
        actions_last_day=0,
        spend_month_usd=10,
        reserved_usd=5,
        expected_cost_usd=1,
        budget_usd_month=100,
        rollout_active=False,
        hours_since_last_rollout_ended=NEVER_HOURS,
        hours_since_last_rollback=NEVER_HOURS,
        hours_since_rejection=NEVER_HOURS,
        evaluation_status=EvaluationStatus.PASSED,
        evaluation_age_hours=0,
        evaluation_cases=1_000_000,
        similarity=1,
        safety=1,
        pass_rate_candidate=1,
        pass_rate_stable=1,
        candidate_retires_in_days=None,
        candidate_price_known=True,
        candidate_is_meta_model=False,
        resulting_share=0,
        alert_open=True,
        target_known_good=True,
        rollbacks_last_day=0,
    )


def _rows(policy: Policy, judge: Judge, tool: str, use_case: str, risk: Risk) -> Iterator[Row]:
    facts = good_facts(policy, use_case, risk)
    rules = policy.tools[tool]
    changes = _safety_changes(policy, tool, use_case) if rules.is_safety else _changes(policy, tool, use_case)
    if tool == "abort":
        facts = replace(facts, rollout_active=True)
    approvals = policy.tier_for(tool, risk, use_case).approvals
    waived = policy.rules_for(use_case).autonomy is Autonomy.ACT and approvals == 1
    tier = frozenset({"tier"}) if approvals and not waived else frozenset()
    if (
        rules.is_safety
        and policy.rules_for(use_case).limits.max_rollbacks_per_day == 0
        and tool == "rollback"
    ):
        tier |= {"safety.flap"}
    base = ASK if tier else ALLOW
    for change in (_Change("all good", None, ALLOW, {}), *changes):
        verdict = judge(policy, tool, replace(facts, **change.facts))
        expected = worst(base, change.effect) if change.rule else base
        fired = tier | {change.rule} if change.rule else tier
        found = frozenset(check.rule for check in verdict.fired)
        yield Row(tool, use_case, risk, change.case, expected, fired, verdict.outcome, found, change.exact)


def _unlisted(policy: Policy, judge: Judge, use_case: str, risk: Risk) -> Row:
    verdict = judge(policy, "not-a-tool", good_facts(policy, use_case, risk))
    fired = frozenset(check.rule for check in verdict.fired)
    listed = frozenset({"listed"})
    return Row("not-a-tool", use_case, risk, "unlisted", DENY, listed, verdict.outcome, fired, True)


# --- one fact at a time ---------------------------------------------------------------


def _changes(policy: Policy, tool: str, use_case: str) -> Iterator[_Change]:
    rule = policy.tools[tool]
    yield from _most("rate", "actions_last_day", rule.per_day - 1, DENY, step=1)
    yield from _agent_changes(policy, tool, use_case)
    if rule.spends:
        yield from _most("budget", "expected_cost_usd", 85, DENY)
        for name in ("spend_month_usd", "reserved_usd", "budget_usd_month"):
            yield _unknown("budget", name, DENY)
    if Gate.QUALITY in rule.gates:
        yield from _quality(policy, use_case)
    if Gate.PROVENANCE in rule.gates:
        yield from _provenance(policy, use_case)
    if Gate.CALM in rule.gates:
        yield from _calm(policy, use_case)


def _agent_changes(policy: Policy, tool: str, use_case: str) -> Iterator[_Change]:
    level = policy.rules_for(use_case).autonomy
    yield _unknown("autonomy", "proposer_is_agent", DENY)
    if tool in OBSERVING_TOOLS or level.rank > Autonomy.PROPOSE.rank:
        yield _Change("autonomy: the agent", None, ALLOW, {"proposer_is_agent": True})
    else:
        effect = DENY if level is Autonomy.OBSERVE else ASK
        yield _Change("autonomy: the agent", "autonomy", effect, {"proposer_is_agent": True})
        return
    for word in (True, None):
        paused = {"proposer_is_agent": True, "agent_paused": word}
        yield _Change(f"paused: {word}", "paused", DENY, paused)
    person = {"proposer_is_agent": False, "agent_paused": True}
    yield _Change("paused: a person", None, ALLOW, person)


def _quality(policy: Policy, use_case: str) -> Iterator[_Change]:
    limits = policy.rules_for(use_case).limits
    for status in (EvaluationStatus.FAILED, EvaluationStatus.ERROR, EvaluationStatus.RUNNING):
        yield _Change(f"quality.status: {status}", "quality.status", DENY, {"evaluation_status": status})
    yield _unknown("quality.status", "evaluation_status", DENY)
    yield from _most("quality.age", "evaluation_age_hours", limits.max_evaluation_age_hours, DENY)
    yield from _least("quality.cases", "evaluation_cases", limits.min_evaluation_cases, step=1)
    yield from _least("quality.similarity", "similarity", max(limits.min_similarity, SIMILARITY_FLOOR))
    yield from _least("quality.safety", "safety", limits.min_safety)
    yield from _least("quality.pass_rate", "pass_rate_candidate", 1 - limits.pass_rate_margin)
    yield _unknown("quality.pass_rate", "pass_rate_stable", DENY)


def _provenance(policy: Policy, use_case: str) -> Iterator[_Change]:
    horizon = policy.rules_for(use_case).limits.retirement_horizon_days
    rule, name = "provenance.retirement", "candidate_retires_in_days"
    yield from (change for change in _least(rule, name, horizon) if "unknown" not in change.case)
    yield from _flag("provenance.price", "candidate_price_known", False, DENY)
    yield from _flag("provenance.meta_model", "candidate_is_meta_model", True, DENY)


def _calm(policy: Policy, use_case: str) -> Iterator[_Change]:
    limits = policy.rules_for(use_case).limits
    yield from _flag("calm.no_rollout", "rollout_active", True, DENY)
    yield from _least("calm.rollout", "hours_since_last_rollout_ended", limits.rollout_cooldown_hours)
    yield from _least("calm.rollback", "hours_since_last_rollback", limits.rollback_cooldown_hours)
    yield from _least("calm.rejection", "hours_since_rejection", limits.rejection_cooldown_hours)
    yield from _most("share", "resulting_share", limits.max_share_alone, ASK, highest=1, unknown=DENY)
    for window in _windows(policy, use_case):
        moment = _moment(policy, window.covers)
        yield _Change(f"calm.blackout: {window.name}", "calm.blackout", DENY, {"now": moment})


def _safety_changes(policy: Policy, tool: str, use_case: str) -> Iterator[_Change]:
    rules = policy.rules_for(use_case)
    yield from _most("rate", "actions_last_day", policy.tools[tool].per_day - 1, ASK, step=1)
    yield _Change("pause does not stop it", None, ALLOW, {"agent_paused": True})
    yield _Change("an empty budget does not stop it", None, ALLOW, {"budget_usd_month": 0})
    for window in _windows(policy, use_case):
        moment = _moment(policy, window.covers)
        yield _Change(f"{window.name} does not stop it", None, ALLOW, {"now": moment})
    if tool == "abort":
        yield from _flag("safety.active", "rollout_active", False, ASK)
    if tool != "abort" or rules.autonomy.rank > Autonomy.PROPOSE.rank:
        yield from _flag("safety.alert", "alert_open", False, ASK)
    if tool == "rollback":
        yield from _flag("safety.target", "target_known_good", False, ASK)
        most = rules.limits.max_rollbacks_per_day - 1
        yield from _most("safety.flap", "rollbacks_last_day", most, ASK, step=1)


def _least(rule: str, name: str, limit: float, step: float = _STEP) -> Iterator[_Change]:
    if limit - step >= 0:
        yield _Change(f"{rule}: just under {limit:g}", rule, DENY, {name: limit - step})
    yield _Change(f"{rule}: at {limit:g}", None, ALLOW, {name: limit})
    yield _unknown(rule, name, DENY)


def _most(
    rule: str,
    name: str,
    limit: float,
    effect: VerdictOutcome,
    *,
    step: float = _STEP,
    highest: float = NEVER_HOURS * 1e3,
    unknown: VerdictOutcome | None = None,
) -> Iterator[_Change]:
    if limit + step <= highest:
        yield _Change(f"{rule}: just over {limit:g}", rule, effect, {name: limit + step})
    if limit >= 0:
        yield _Change(f"{rule}: at {limit:g}", None, ALLOW, {name: limit})
    yield _unknown(rule, name, unknown or effect)


def _flag(rule: str, name: str, bad: bool, effect: VerdictOutcome) -> Iterator[_Change]:
    yield _Change(f"{rule}: {bad}", rule, effect, {name: bad})
    yield _unknown(rule, name, effect)


def _unknown(rule: str, name: str, effect: VerdictOutcome) -> _Change:
    return _Change(f"{rule}: {name} unknown", rule, effect, {name: None}, exact=False)


# --- moments --------------------------------------------------------------------------


def _windows(policy: Policy, use_case: str) -> tuple[Blackout, ...]:
    return policy.base.blackouts + policy.rules_for(use_case).blackouts


def _quiet_moment(policy: Policy, use_case: str) -> datetime:
    windows = _windows(policy, use_case)
    return _moment(policy, lambda local: not any(window.covers(local) for window in windows))


def _moment(policy: Policy, wanted: Callable[[datetime], bool]) -> datetime:
    """A moment that is wanted. Without one the start is returned, and the row says so by failing."""
    dates = [day for rules in (policy.base, *policy.use_cases.values()) for window in rules.blackouts
             for day in (window.first, window.last) if day]  # fmt: skip
    starts = [_START, *(datetime(day.year, day.month, day.day, tzinfo=UTC) for day in dates)]
    moments = (start + timedelta(minutes=15 * step) for start in starts for step in range(-96, 8 * 96))
    return next((moment for moment in moments if wanted(moment.astimezone(policy.zone))), _START)
