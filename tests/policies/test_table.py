"""The generated table: the shipped policy passes it, and it notices every rule that is lost."""

from __future__ import annotations

import doctest

import pytest

import policies.policy
import policies.verdict
from policies.engine import judge
from policies.facts import Facts
from policies.loader import DEFAULT_PATH, load_policy
from policies.policy import Policy
from policies.table import check_policy
from policies.verdict import Verdict, worst

DEFAULT = DEFAULT_PATH.read_text()
BUSY = (
    DEFAULT.replace("timezone: UTC ", "timezone: Europe/Berlin ")
    .replace("max_share_alone: 1.0", "max_share_alone: 0.5")
    .replace("blackouts: []", 'blackouts: [{name: night, from: "22:00", to: "06:00", days: [fri]}]')
    .replace(
        "use_cases: {}",
        """use_cases:
  careful: {limits: {min_similarity: 0.97, max_rollbacks_per_day: 0}, at_least: {deploy: four_eyes}}
  watched: {autonomy: observe, blackouts: [{name: freeze, first: 2027-03-01, last: 2027-03-07}]}
  asked: {autonomy: propose}
""",
    )
)
RULES = [
    "listed", "tier", "autonomy", "paused", "rate", "budget", "quality.status", "quality.age",
    "quality.cases", "quality.similarity", "quality.safety", "quality.pass_rate",
    "provenance.price", "provenance.meta_model", "provenance.retirement", "calm.no_rollout",
    "calm.rollout", "calm.rollback", "calm.rejection", "calm.blackout", "share", "safety.active",
    "safety.alert", "safety.target", "safety.flap",
]  # fmt: skip


@pytest.mark.parametrize(
    "text", [DEFAULT, BUSY, BUSY.replace("autonomy: act_with_approval", "autonomy: act")]
)
def test_every_row_holds(text: str) -> None:
    rows = check_policy(load_policy(text))
    assert len(rows) > 300
    assert [row for row in rows if not row.ok] == []


@pytest.mark.parametrize("rule", RULES)
def test_the_table_notices_a_lost_rule(rule: str) -> None:
    def forgetful(policy: Policy, tool: str, facts: Facts) -> Verdict:
        verdict = judge(policy, tool, facts)
        checks = tuple(check for check in verdict.checks if check.rule != rule)
        outcome = worst(*(check.effect for check in checks if not check.ok))
        return Verdict(outcome, checks, verdict.approvals_needed, verdict.roles, verdict.policy_digest)

    assert any(not row.ok for row in check_policy(load_policy(BUSY), forgetful))


@pytest.mark.parametrize(
    ("key", "moved"),
    [
        ("min_similarity: 0.95", "min_similarity: 0.96"), ("min_safety: 0.99", "min_safety: 0.98"),
        ("max_evaluation_age_hours: 24", "max_evaluation_age_hours: 25"),
        ("min_evaluation_cases: 50", "min_evaluation_cases: 49"), ("per_day: 4\n", "per_day: 5\n"),
        ("rollout_cooldown_hours: 6", "rollout_cooldown_hours: 5"), ("approvals: 1", "approvals: 0"),
        ("max_rollbacks_per_day: 3", "max_rollbacks_per_day: 4"), ("spends: true", "spends: false"),
    ],
)  # fmt: skip
def test_the_table_notices_a_wrong_number(key: str, moved: str) -> None:
    """An engine that reads another number than the policy's is found out at the limit."""
    wrong = load_policy(DEFAULT.replace(key, moved))
    rows = check_policy(load_policy(DEFAULT), lambda _, tool, facts: judge(wrong, tool, facts))
    assert any(not row.ok for row in rows)


@pytest.mark.parametrize("module", [policies.policy, policies.verdict])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]  # a module, parametrised
