"""What policy says of one proposal, with every rule it looked at and what it measured.

Knows nothing of how the rules are judged (``policies.engine``) or where verdicts are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.vocabulary import Role, VerdictOutcome

_SEVERITY = (VerdictOutcome.ALLOW, VerdictOutcome.REQUIRE_APPROVAL, VerdictOutcome.DENY)


def worst(*outcomes: VerdictOutcome) -> VerdictOutcome:
    """The strictest of several outcomes; allow when there are none.

    >>> worst(VerdictOutcome.ALLOW, VerdictOutcome.DENY, VerdictOutcome.REQUIRE_APPROVAL).value
    'deny'
    """
    return max(outcomes, key=_SEVERITY.index, default=VerdictOutcome.ALLOW)


def severity(outcome: VerdictOutcome) -> int:
    """Position of an outcome from loose to strict."""
    return _SEVERITY.index(outcome)


@dataclass(frozen=True)
class Check:
    """One rule, held against one measured value."""

    rule: str
    ok: bool
    effect: VerdictOutcome  #: what follows when the rule does not hold
    measured: str
    limit: str
    why: str  #: one sentence for the person who reads the approval page

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for a JSONB column."""
        return {
            "rule": self.rule,
            "ok": self.ok,
            "effect": self.effect.value,
            "measured": self.measured,
            "limit": self.limit,
            "why": self.why,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Check:
        """The inverse of :meth:`to_json`."""
        return cls(
            rule=str(data["rule"]),
            ok=bool(data["ok"]),
            effect=VerdictOutcome(data["effect"]),
            measured=str(data["measured"]),
            limit=str(data["limit"]),
            why=str(data["why"]),
        )


@dataclass(frozen=True)
class Verdict:
    """Allow, wait for people, or deny; bound to the exact policy that said so."""

    outcome: VerdictOutcome
    checks: tuple[Check, ...]
    approvals_needed: int  #: distinct people, never the proposer; 0 unless approval is required
    roles: tuple[Role, ...]  #: who may approve
    policy_digest: str

    @property
    def fired(self) -> tuple[Check, ...]:
        """The rules that did not hold: the reasons of the outcome."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def why(self) -> str:
        """The reasons in one line, for logs and tables."""
        return "; ".join(check.why for check in self.fired) or "every rule holds"

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for a JSONB column."""
        return {
            "outcome": self.outcome.value,
            "checks": [check.to_json() for check in self.checks],
            "approvals_needed": self.approvals_needed,
            "roles": [role.value for role in self.roles],
            "policy_digest": self.policy_digest,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of :meth:`to_json`."""
        return cls(
            outcome=VerdictOutcome(data["outcome"]),
            checks=tuple(Check.from_json(check) for check in data["checks"]),
            approvals_needed=int(data["approvals_needed"]),
            roles=tuple(Role(role) for role in data["roles"]),
            policy_digest=str(data["policy_digest"]),
        )
