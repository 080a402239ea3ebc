"""What is known about a proposal at the moment it is judged.

Facts come from storage, looked up by code; a planner never writes one. ``None`` means that
a fact is not known, and a rule that needs an unknown fact does not hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from storage.vocabulary import EvaluationStatus, Risk

#: Hours since something that has never happened. Unknown (``None``) denies; never is known.
NEVER_HOURS = 1_000_000.0

_SHARES = ("similarity", "safety", "pass_rate_candidate", "pass_rate_stable", "resulting_share")
_COUNTS = ("actions_last_day", "evaluation_cases", "rollbacks_last_day")
_AMOUNTS = (
    "spend_month_usd",
    "reserved_usd",
    "expected_cost_usd",
    "budget_usd_month",
    "hours_since_last_rollout_ended",
    "hours_since_last_rollback",
    "hours_since_rejection",
    "evaluation_age_hours",
    "candidate_retires_in_days",
)
_FLAGS = (
    "rollout_active",
    "candidate_price_known",
    "candidate_is_meta_model",
    "alert_open",
    "target_known_good",
    "agent_paused",
    "proposer_is_agent",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The world as one proposal sees it. Every number is finite and not negative: a negative
    cost would pass any budget, and NaN passes any comparison that is written the wrong way
    round."""

    now: datetime  #: with a time zone
    use_case: str
    risk: Risk
    proposer_is_agent: bool | None = None
    agent_paused: bool | None = None

    actions_last_day: int | None = None  #: runs of this tool for this use case, this one not counted
    spend_month_usd: float | None = None
    reserved_usd: float | None = None  #: promised to running work and not yet spent
    expected_cost_usd: float | None = None  #: an upper bound for this action
    budget_usd_month: float | None = None

    rollout_active: bool | None = None
    hours_since_last_rollout_ended: float | None = None
    hours_since_last_rollback: float | None = None
    hours_since_rejection: float | None = None  #: same tool and arguments, rejected by a person

    evaluation_status: EvaluationStatus | None = None
    evaluation_age_hours: float | None = None
    evaluation_cases: int | None = None
    similarity: float | None = None
    safety: float | None = None  #: share of safe answers
    pass_rate_candidate: float | None = None
    pass_rate_stable: float | None = None

    candidate_retires_in_days: float | None = None  #: None: no date is known; 0: already retired
    candidate_price_known: bool | None = None
    candidate_is_meta_model: bool | None = None
    resulting_share: float | None = None  #: of traffic after the action, not the planner's delta

    alert_open: bool | None = None  #: raised by a deterministic monitor and not yet resolved
    target_known_good: bool | None = None  #: the release to go back to was live and healthy
    rollbacks_last_day: int | None = None

    def __post_init__(self) -> None:
        """Refuse facts that would make a comparison mean nothing."""
        if self.now.tzinfo is None or self.now.utcoffset() is None:
            raise ValueError("now must carry a time zone")
        for name in _COUNTS:
            _refuse_bad_number(name, getattr(self, name), whole=True)
        for name in _AMOUNTS:
            _refuse_bad_number(name, getattr(self, name))
        for name in _SHARES:
            _refuse_bad_number(name, getattr(self, name), at_most=1.0)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool | None):
                raise ValueError(f"{name} must be true, false or unknown")
        Risk(self.risk)
        if self.evaluation_status is not None:
            EvaluationStatus(self.evaluation_status)

    def to_json(self) -> dict[str, Any]:
        """Plain values, stored beside the verdict so that it can be judged again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["now"] = self.now.isoformat()
        values["risk"] = self.risk.value
        values["evaluation_status"] = self.evaluation_status.value if self.evaluation_status else None
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Facts:
        """The inverse of :meth:`to_json`."""
        status = data.get("evaluation_status")
        return cls(
            **{
                **data,
                "now": datetime.fromisoformat(data["now"]),
                "risk": Risk(data["risk"]),
                "evaluation_status": EvaluationStatus(status) if status else None,
            }
        )


def _refuse_bad_number(name: str, value: object, *, whole: bool = False, at_most: float = math.inf) -> None:
    if value is None:
        return
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")
    if value > at_most:
        raise ValueError(f"{name} is a share and must be at most 1, not {value!r}")
