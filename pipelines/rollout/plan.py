"""What a rollout is going to do: its steps, how much evidence each needs, and what is tolerated.

Fixed before the rollout starts and stored with it. Knows nothing of how it is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.vocabulary import AssignmentUnit

#: How the tolerated chance of a wrong rollback is split over a metric, in every phase.
METRIC_SHARES: Mapping[str, float] = {"failure": 0.35, "violation": 0.35, "latency": 0.2, "cost": 0.1}
#: And over the phases of one rollout.
PHASE_SHARES: Mapping[str, float] = {"shadow": 0.4, "canary": 0.4, "full": 0.2}


@dataclass(frozen=True)
class ShadowStep:
    """A share of requests is also sent to the candidate, whose answers nobody sees."""

    share: float = 0.5
    min_pairs: int = 600
    max_wait_seconds: float = 3 * 86_400

    def __post_init__(self) -> None:
        """Refuse a step that could never measure anything."""
        _between("shadow.share", self.share)
        _positive("shadow.min_pairs", self.min_pairs)
        _positive("shadow.max_wait_seconds", self.max_wait_seconds)


@dataclass(frozen=True)
class CanaryStep:
    """A share of units is answered by the candidate."""

    weight: float
    min_units: int  #: units on the candidate arm before the step may succeed
    max_wait_seconds: float = 3 * 86_400

    def __post_init__(self) -> None:
        """Refuse a step that could never measure anything."""
        _between("canary.weight", self.weight)
        _positive("canary.min_units", self.min_units)
        _positive("canary.max_wait_seconds", self.max_wait_seconds)


@dataclass(frozen=True)
class Tolerances:
    """How much worse the candidate may be before it counts as evidence against it."""

    failure_ratio: float = 1.1  #: of failure rates
    violation_ratio: float = 1.0  #: of violation rates
    latency_ratio: float = 1.25
    cost_ratio: float | None = 1.5  #: None: cost is not compared
    full_ratio: float = 2.0  #: with no control arm left: times the rate that stable had
    full_floor: float = 0.02  #: and never below this rate

    def __post_init__(self) -> None:
        """Refuse margins that no bet can be made against."""
        for name in ("failure_ratio", "violation_ratio", "latency_ratio", "full_ratio"):
            _positive(f"tolerances.{name}", getattr(self, name))
        if self.cost_ratio is not None:
            _positive("tolerances.cost_ratio", self.cost_ratio)
        if not 0 < self.full_floor < 1:
            raise ValueError("tolerances.full_floor must lie between 0 and 1")


def _default_canary() -> tuple[CanaryStep, ...]:
    return tuple(
        CanaryStep(weight, units) for weight, units in ((0.10, 300), (0.25, 750), (0.50, 1500), (1.0, 500))
    )


@dataclass(frozen=True)
class RolloutPlan:
    """Shadow, then growing shares, with one budget of wrong rollbacks for the whole way.

    >>> plan = RolloutPlan.small(min_pairs=3, min_units=2, max_wait_seconds=60)
    >>> RolloutPlan.from_json(plan.to_json()) == plan, plan.weights
    (True, (0.1, 0.25, 0.5, 1.0))
    """

    shadow: ShadowStep | None = field(default_factory=ShadowStep)
    canary: tuple[CanaryStep, ...] = field(default_factory=_default_canary)
    alpha: float = 0.01  #: chance of rolling back a candidate that is no worse than tolerated
    tolerances: Tolerances = field(default_factory=Tolerances)
    unit: AssignmentUnit = AssignmentUnit.CONVERSATION
    #: Evidence against the candidate above this, though short of a failure, holds a step.
    hold_above: float = 5.0
    #: After this long without a single row, measuring itself is broken.
    due_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse a plan whose steps do not climb to all traffic."""
        if not 0 < self.alpha < 1:
            raise ValueError("alpha must lie between 0 and 1")
        if list(self.weights) != sorted(set(self.weights)):
            raise ValueError("canary weights must grow from step to step")
        if not self.canary or self.canary[-1].weight != 1.0:
            raise ValueError("the last canary step must have weight 1.0")

    @property
    def weights(self) -> tuple[float, ...]:
        """The candidate's share, step by step."""
        return tuple(step.weight for step in self.canary)

    def is_last(self, step: int) -> bool:
        """Whether promotion follows the success of this canary step."""
        return step >= len(self.canary) - 1

    @classmethod
    def small(cls, *, min_pairs: int, min_units: int, max_wait_seconds: float, **changes: Any) -> RolloutPlan:
        """The usual weights with the same small numbers at every step, for demos and tests.

        Few units find only gross faults; what a step of n units can see is in ``betting``.
        """
        steps = tuple(CanaryStep(weight, min_units, max_wait_seconds) for weight in (0.10, 0.25, 0.50, 1.0))
        shadow = ShadowStep(1.0, min_pairs, max_wait_seconds)
        return cls(shadow, steps, **{"due_seconds": max_wait_seconds / 2, **changes})

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSONB column."""
        return {**asdict(self), "canary": [asdict(step) for step in self.canary], "unit": self.unit.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RolloutPlan:
        """The inverse of :meth:`to_json`. Absent keys take their defaults, unknown ones are errors."""
        values = dict(data)
        if "shadow" in values:
            values["shadow"] = ShadowStep(**values["shadow"]) if values["shadow"] else None
        if "canary" in values:
            values["canary"] = tuple(CanaryStep(**step) for step in values["canary"])
        if "tolerances" in values:
            values["tolerances"] = Tolerances(**values["tolerances"])
        if "unit" in values:
            values["unit"] = AssignmentUnit(values["unit"])
        return cls(**values)


def _between(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be more than 0 and at most 1, not {value!r}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be more than 0, not {value!r}")
