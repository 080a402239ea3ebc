"""The guard: may this tool be used, given these facts?

Pure: no clock, no database, no model. The same policy and facts give the same verdict on
every machine. Whatever is not listed, not known or not understood is denied.
"""

from __future__ import annotations

from collections.abc import Iterator

from policies.facts import NEVER_HOURS, Facts
from policies.policy import (
    DEFAULT_ROLES,
    OBSERVING_TOOLS,
    SIMILARITY_FLOOR,
    Autonomy,
    Gate,
    Limits,
    Policy,
    Tier,
    ToolRule,
)
from policies.verdict import Check, Verdict, worst
from storage.vocabulary import EvaluationStatus, VerdictOutcome

ALLOW, ASK, DENY = VerdictOutcome.ALLOW, VerdictOutcome.REQUIRE_APPROVAL, VerdictOutcome.DENY

#: Sums of money and differences of rates are compared with this slack, so that a value
#: exactly at its limit passes in binary floating point too.
_SLACK = 1e-9


def judge(policy: Policy, tool: str, facts: Facts) -> Verdict:
    """Hold every rule of a tool against the facts; the worst outcome wins.

    All rules are looked at, also after one has denied: an operator should see everything
    that stands in the way at once.
    """
    try:
        return _verdict(policy, tool, facts)
    except Exception as error:
        # A rule that breaks must not become a rule that is skipped.
        why = f"judging stopped with {type(error).__name__}: {error}"
        check = Check("error", False, DENY, type(error).__name__, "no error", why)
        return Verdict(DENY, (check,), 0, (), _digest_of(policy))


def _digest_of(policy: Policy) -> str:
    try:
        return policy.digest
    except Exception:
        return "unknown"


def _verdict(policy: Policy, tool: str, facts: Facts) -> Verdict:
    rule = policy.tools.get(tool)
    if rule is None:
        check = Check("listed", False, DENY, tool, "listed in the policy", f"{tool} is not in the policy")
        return Verdict(DENY, (check,), 0, (), policy.digest)
    tier = _tier(policy, rule, facts)
    checks = (
        Check("listed", True, DENY, tool, "listed in the policy", f"{tool} is in the policy"),
        *(_safety_checks(policy, rule, facts) if rule.is_safety else _ordinary_checks(policy, rule, facts)),
        _tier_check(tier, facts),
    )
    outcome = worst(*(check.effect for check in checks if not check.ok))
    if outcome is not ASK:
        return Verdict(outcome, checks, 0, (), policy.digest)
    return Verdict(ASK, checks, max(1, tier.approvals), tier.roles or DEFAULT_ROLES, policy.digest)


# --- people ---------------------------------------------------------------------------


def _tier(policy: Policy, rule: ToolRule, facts: Facts) -> Tier:
    tier = policy.tier_for(rule.name, facts.risk, facts.use_case)
    freed = policy.rules_for(facts.use_case).autonomy is Autonomy.ACT and tier.approvals == 1
    return Tier(f"{tier.name}, waived", 0, tier.roles) if freed else tier


def _tier_check(tier: Tier, facts: Facts) -> Check:
    roles = " or ".join(role.value for role in tier.roles)
    people = f"{tier.approvals} approval{'s' if tier.approvals > 1 else ''} by {roles}"
    return Check(
        rule="tier",
        ok=tier.approvals == 0,
        effect=ASK,
        measured=f"{facts.risk.value} risk",
        limit=f"tier {tier.name}",
        why=f"{facts.risk.value} risk: {people if tier.approvals else 'no approval'} (tier {tier.name})",
    )


def _autonomy(policy: Policy, rule: ToolRule, facts: Facts, strictest: VerdictOutcome) -> Check:
    """What the agent may do by itself for this use case. A person is bound by tiers only."""
    level = policy.rules_for(facts.use_case).autonomy
    who = {True: "the agent", False: "a person", None: "unknown"}[facts.proposer_is_agent]
    effect, ok = strictest, facts.proposer_is_agent is False
    if facts.proposer_is_agent and (rule.name in OBSERVING_TOOLS or level.rank > Autonomy.PROPOSE.rank):
        ok = True
    elif facts.proposer_is_agent and level is Autonomy.PROPOSE:
        effect = ASK
    why = f"{who} proposes {rule.name} at autonomy {level.value}"
    return Check("autonomy", ok, effect, who, level.value, why)


def _paused(facts: Facts) -> Check:
    stopped = facts.proposer_is_agent is True and facts.agent_paused is not False
    return Check("paused", not stopped, DENY, _word(facts.agent_paused), "no", "the agent's pause switch")


# --- ordinary tools -------------------------------------------------------------------


def _ordinary_checks(policy: Policy, rule: ToolRule, facts: Facts) -> Iterator[Check]:
    limits = policy.rules_for(facts.use_case).limits
    yield _autonomy(policy, rule, facts, DENY)
    yield _paused(facts)
    yield _rate(rule, facts, DENY)
    if rule.spends:
        yield _budget(facts)
    if Gate.QUALITY in rule.gates:
        yield from _quality(limits, facts)
    if Gate.PROVENANCE in rule.gates:
        yield from _provenance(limits, facts)
    if Gate.CALM in rule.gates:
        yield from _calm(policy, limits, facts)
        yield _share(limits, facts)


def _rate(rule: ToolRule, facts: Facts, effect: VerdictOutcome) -> Check:
    count = None if facts.actions_last_day is None else facts.actions_last_day + 1
    return _at_most("rate", count, rule.per_day, f"{rule.name} in 24 h, this one counted", effect)


def _budget(facts: Facts) -> Check:
    parts = (facts.spend_month_usd, facts.reserved_usd, facts.expected_cost_usd)
    limit = facts.budget_usd_month
    if limit is None or any(part is None for part in parts):
        why = "spend, reservations, expected cost or budget of the month is not known"
        return Check("budget", False, DENY, "unknown", _word(limit), why)
    total = sum(part for part in parts if part is not None)
    why = f"{total:.2f} USD spent, reserved and expected of {limit:.2f} USD a month"
    return Check("budget", total <= limit + _SLACK, DENY, f"{total:.2f}", f"{limit:.2f}", why)


def _quality(limits: Limits, facts: Facts) -> Iterator[Check]:
    yield Check(
        "quality.status",
        facts.evaluation_status is EvaluationStatus.PASSED,
        DENY,
        _word(facts.evaluation_status),
        "passed",
        f"the candidate's evaluation: {_word(facts.evaluation_status)}",
    )
    age = limits.max_evaluation_age_hours
    yield _at_most("quality.age", facts.evaluation_age_hours, age, "hours since the evaluation")
    cases = limits.min_evaluation_cases
    yield _at_least("quality.cases", facts.evaluation_cases, cases, "evaluated cases")
    floor = max(limits.min_similarity, SIMILARITY_FLOOR)
    yield _at_least("quality.similarity", facts.similarity, floor, "similarity to stable")
    yield _at_least("quality.safety", facts.safety, limits.min_safety, "share of safe answers")
    yield _pass_rate(limits, facts)


def _pass_rate(limits: Limits, facts: Facts) -> Check:
    candidate, stable = facts.pass_rate_candidate, facts.pass_rate_stable
    if candidate is None or stable is None:
        why = "the pass rate of candidate or stable is not known"
        return Check("quality.pass_rate", False, DENY, _word(candidate), "unknown", why)
    limit = stable - limits.pass_rate_margin
    why = f"pass rate {candidate:g}, stable {stable:g} less a margin of {limits.pass_rate_margin:g}"
    return Check("quality.pass_rate", candidate >= limit - _SLACK, DENY, f"{candidate:g}", f"{limit:g}", why)


def _provenance(limits: Limits, facts: Facts) -> Iterator[Check]:
    yield _is("provenance.price", facts.candidate_price_known, True, "the candidate's price is known")
    yield _is(
        "provenance.meta_model", facts.candidate_is_meta_model, False, "the candidate is the meta model"
    )
    days, horizon = facts.candidate_retires_in_days, limits.retirement_horizon_days
    yield Check(
        "provenance.retirement",
        days is None or days >= horizon,
        DENY,
        "no known date" if days is None else f"{days:g}",
        f"{horizon:g}",
        "no retirement date is known" if days is None else f"retires in {days:g} days; {horizon:g} needed",
    )


def _calm(policy: Policy, limits: Limits, facts: Facts) -> Iterator[Check]:
    yield _is("calm.no_rollout", facts.rollout_active, False, "a rollout is under way")
    for rule, hours, limit, event in (
        (
            "rollout",
            facts.hours_since_last_rollout_ended,
            limits.rollout_cooldown_hours,
            "the last rollout",
        ),
        ("rollback", facts.hours_since_last_rollback, limits.rollback_cooldown_hours, "the last rollback"),
        ("rejection", facts.hours_since_rejection, limits.rejection_cooldown_hours, "a person rejected this"),
    ):
        yield _at_least(f"calm.{rule}", hours, limit, f"hours since {event}")
    local = facts.now.astimezone(policy.zone)
    windows = policy.base.blackouts + policy.rules_for(facts.use_case).blackouts
    open_now = [window.name for window in windows if window.covers(local)]
    why = f"blackout: {', '.join(open_now)}" if open_now else "no blackout"
    stamp = f"{local:%a %H:%M} {policy.timezone}"
    yield Check("calm.blackout", not open_now, DENY, stamp, "outside every blackout", why)


def _share(limits: Limits, facts: Facts) -> Check:
    """The share that results, computed by code: many small steps must not add up unseen."""
    effect = DENY if facts.resulting_share is None else ASK
    return _at_most("share", facts.resulting_share, limits.max_share_alone, "share after it", effect)


# --- safety tools ---------------------------------------------------------------------


def _safety_checks(policy: Policy, rule: ToolRule, facts: Facts) -> Iterator[Check]:
    """Going back is never denied for a listed tool: what is missing asks a person.

    Pause, budget and blackouts do not stop it. Without an open alert or a known target it
    would be a way to push a healthy model aside, so then it does not go alone.
    """
    yield _autonomy(policy, rule, facts, ASK)
    yield _rate(rule, facts, ASK)
    limits = policy.rules_for(facts.use_case).limits
    if rule.name == "abort":
        yield _is("safety.active", facts.rollout_active, True, "a rollout is under way", ASK)
        if facts.proposer_is_agent is False:
            return
        yield _is("safety.alert", facts.alert_open, True, "an alert is open", ASK)
        return
    yield _is("safety.alert", facts.alert_open, True, "an alert is open", ASK)
    yield _is("safety.target", facts.target_known_good, True, "the target is known to be good", ASK)
    count = None if facts.rollbacks_last_day is None else facts.rollbacks_last_day + 1
    most = limits.max_rollbacks_per_day
    yield _at_most("safety.flap", count, most, "rollbacks in 24 h, this one counted", ASK)


# --- comparisons ----------------------------------------------------------------------


def _at_least(rule: str, value: float | None, limit: float, what: str) -> Check:
    ok = value is not None and value >= limit
    why = f"{what}: {_word(value)}, at least {limit:g} needed"
    return Check(rule, ok, DENY, _word(value), f"{limit:g}", why)


def _at_most(rule: str, value: float | None, limit: float, what: str, effect: VerdictOutcome = DENY) -> Check:
    ok = value is not None and value <= limit
    why = f"{what}: {_word(value)}, at most {limit:g} allowed"
    return Check(rule, ok, effect, _word(value), f"{limit:g}", why)


def _is(rule: str, value: bool | None, wanted: bool, what: str, effect: VerdictOutcome = DENY) -> Check:
    return Check(rule, value is wanted, effect, _word(value), _word(wanted), f"{what}: {_word(value)}")


def _word(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if value >= NEVER_HOURS:
        return "never"
    # No powers of ten on a page that people decide by.
    return f"{value:g}" if value == 0 or value >= 0.0001 else "less than 0.001"
