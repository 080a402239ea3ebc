"""The rules as data: tiers, tools, limits, blackouts, and what a use case tightens.

Numbers are the operators' business and live in YAML (``policies.loader``). What no file may
change is in the constants here and is enforced by ``policies.engine`` once more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from storage.vocabulary import Risk, Role


class Gate(StrEnum):
    """A group of rules that a tool must pass."""

    QUALITY = "quality"  #: a fresh, large enough, passed evaluation
    PROVENANCE = "provenance"  #: priced, not about to retire, not the meta model
    CALM = "calm"  #: nothing under way, cooled down, not in a blackout


class Autonomy(StrEnum):
    """How far the agent may go for a use case, from the least to the most."""

    OBSERVE = "observe"  #: scans and ranks, nothing else
    PROPOSE = "propose"  #: whatever it proposes waits for a person
    ACT_WITH_APPROVAL = "act_with_approval"  #: acts as the tiers say
    ACT = "act"  #: single approvals are waived; two are never waived

    @property
    def rank(self) -> int:
        """Position from the least freedom to the most."""
        return list(Autonomy).index(self)


#: Every tool this engine can judge; anything else is denied.
TOOLS = ("scan", "rank", "test", "deploy", "rollback", "abort")
#: Tools that only look. Free at every level of autonomy.
OBSERVING_TOOLS = frozenset({"scan", "rank"})
#: Tools that take traffic away from a candidate. Marking another tool ``safety`` is an error,
#: since it would walk around every gate.
SAFETY_TOOLS = frozenset({"rollback", "abort"})
#: Gates that no policy file can take from a tool.
REQUIRED_GATES: Mapping[str, frozenset[Gate]] = {"deploy": frozenset(Gate)}
#: The lowest agreement with the current answers that any policy may ask for.
SIMILARITY_FLOOR = 0.95
#: Who approves when a rule asks for a person and the tier names nobody.
DEFAULT_ROLES = (Role.APPROVER, Role.ADMIN)


@dataclass(frozen=True)
class Tier:
    """How many people must agree, and which."""

    name: str
    approvals: int
    roles: tuple[Role, ...] = ()

    @property
    def strictness(self) -> tuple[int, int, int]:
        """Orders tiers: more people, then more powerful ones, then fewer roles to choose from."""
        return (self.approvals, min((role.rank for role in self.roles), default=-1), -len(self.roles))


@dataclass(frozen=True)
class ToolRule:
    """What one tool is bound by."""

    name: str
    tiers: Mapping[Risk, str]  #: tier by the use case's risk
    per_day: int
    spends: bool = False
    requires: tuple[Gate, ...] = ()
    safety: bool = False

    @property
    def is_safety(self) -> bool:
        """Whether the tool takes the safety path: what the file says, within what code allows."""
        return self.safety and self.name in SAFETY_TOOLS

    @property
    def gates(self) -> frozenset[Gate]:
        """The gates of the file and those that no file can take away."""
        return frozenset(self.requires) | REQUIRED_GATES.get(self.name, frozenset())


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The numbers. A use case may only tighten them; see :data:`TIGHTER`."""

    min_similarity: float
    min_safety: float
    max_evaluation_age_hours: float
    min_evaluation_cases: int
    pass_rate_margin: float  #: the candidate's pass rate may be lower than stable's by this much
    retirement_horizon_days: float
    rollout_cooldown_hours: float
    rollback_cooldown_hours: float
    rejection_cooldown_hours: float
    max_rollbacks_per_day: int  #: this many go alone; the next one asks a person
    max_share_alone: float  #: an action that leaves more than this share asks a person


#: +1: a higher number is tighter; -1: a lower one.
TIGHTER: Mapping[str, int] = {
    "min_similarity": +1,
    "min_safety": +1,
    "max_evaluation_age_hours": -1,
    "min_evaluation_cases": +1,
    "pass_rate_margin": -1,
    "retirement_horizon_days": +1,
    "rollout_cooldown_hours": +1,
    "rollback_cooldown_hours": +1,
    "rejection_cooldown_hours": +1,
    "max_rollbacks_per_day": -1,
    "max_share_alone": -1,
}

DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Blackout:
    """A window, in the policy's time zone, in which live traffic is not changed.

    ``start`` and ``end`` are minutes after midnight; an end before the start is on the next
    day. The weekday and the dates are those of the day on which the window opens.
    """

    name: str
    days: tuple[int, ...] = tuple(range(7))  #: Monday is 0
    start: int = 0
    end: int = DAY_MINUTES
    first: date | None = None
    last: date | None = None

    def covers(self, local: datetime) -> bool:
        """Whether the local wall-clock time lies in the window (start in, end out).

        >>> night = Blackout("night", days=(4,), start=22 * 60, end=6 * 60)
        >>> [night.covers(datetime(2026, 1, d, h)) for d, h in ((2, 21), (2, 22), (3, 5), (3, 6))]
        [False, True, True, False]
        """
        minute = local.hour * 60 + local.minute
        today = local.date()
        if self.start < self.end:
            return self._opens_on(today) and self.start <= minute < self.end
        yesterday = today - timedelta(days=1)
        return (self._opens_on(today) and minute >= self.start) or (
            self._opens_on(yesterday) and minute < self.end
        )

    def _opens_on(self, day: date) -> bool:
        in_dates = (self.first is None or day >= self.first) and (self.last is None or day <= self.last)
        return in_dates and day.weekday() in self.days


@dataclass(frozen=True)
class UseCaseRules:
    """What holds for one use case after its overrides."""

    limits: Limits
    autonomy: Autonomy
    blackouts: tuple[Blackout, ...] = ()
    at_least: Mapping[str, str] = field(default_factory=dict)  #: tool: tier it never falls below


@dataclass(frozen=True)
class Policy:
    """The effective policy: every override resolved, every name checked."""

    version: int
    timezone: str
    tiers: Mapping[str, Tier]
    tools: Mapping[str, ToolRule]
    base: UseCaseRules
    use_cases: Mapping[str, UseCaseRules] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two files that mean the same have the same digest."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def zone(self) -> tzinfo:
        """The time zone of the blackouts. UTC needs no time zone database."""
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

    def rules_for(self, use_case: str) -> UseCaseRules:
        """The rules of a use case, or those of every use case without overrides."""
        return self.use_cases.get(use_case, self.base)

    def tier_for(self, tool: str, risk: Risk, use_case: str) -> Tier:
        """The tier of a tool: the stricter of what the risk and the use case ask for."""
        tier = self.tiers[self.tools[tool].tiers[risk]]
        raised = self.rules_for(use_case).at_least.get(tool)
        return max(tier, self.tiers[raised], key=lambda each: each.strictness) if raised else tier

    def capped(self, autonomy: Autonomy) -> Policy:
        """The same policy with no use case above a level of autonomy. Never raises one."""
        return replace(
            self,
            base=_capped(self.base, autonomy),
            use_cases={name: _capped(rules, autonomy) for name, rules in self.use_cases.items()},
        )


def _capped(rules: UseCaseRules, autonomy: Autonomy) -> UseCaseRules:
    return replace(rules, autonomy=min(rules.autonomy, autonomy, key=lambda level: level.rank))


def _plain(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{value!r} has no canonical form")
