"""What the gateway's log says of a candidate, as a phase and the numbers behind it.

Pure: rows in, words out; the same rows give the same words, so it may be asked at any time
and after every crash. A unit of assignment (a conversation, a user) votes once per metric:
the requests of one reader fail together, and counting each of them rolls back two healthy
candidates in five. Knows nothing of the database, of routes, or of what happens next
(``next_action``).

Evidence of harm is the sum of weighted e-values of all metrics against 1/alpha. Its absence
is never success by itself: a step also needs its units, a control arm to compare with, and
a traffic split that is the one asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from pipelines.rollout.betting import (
    FixedRateBet,
    LabelBet,
    LogitBet,
    PairBet,
    RestartingLabelBet,
    split_bet,
)
from pipelines.rollout.plan import METRIC_SHARES, PHASE_SHARES, CanaryStep, RolloutPlan
from pipelines.rollout.votes import Draw, Pair, Row, Vote, pairs_from, votes_from
from storage.vocabulary import Arm, Phase

__all__ = [
    "Analysis",
    "Baseline",
    "Draw",
    "MetricVerdict",
    "Pair",
    "Row",
    "Vote",
    "analyse_canary",
    "analyse_shadow",
    "pairs_from",
    "votes_from",
]

#: e-value of the split bet at which the two arms stop being comparable.
SPLIT_LIMIT = 1e4


@dataclass(frozen=True)
class MetricVerdict:
    """One metric of one step. ``candidate`` and ``stable`` are for the eye; the e-value decides."""

    name: str
    phase: Phase
    candidate: float | None  #: share of units (failure, violation), or median (latency, cost)
    stable: float | None
    e_value: float  #: evidence against the candidate; 1 is none
    threshold: float  #: the e-value at which this metric alone fails the candidate
    units_candidate: int
    units_stable: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSONB column or a chart."""
        return {**asdict(self), "phase": self.phase.value}


@dataclass(frozen=True)
class Analysis:
    """The phase of the current step, every metric, and the sentence that says why."""

    phase: Phase
    metrics: tuple[MetricVerdict, ...]
    why: str
    e_value: float  #: weighted sum over the metrics
    threshold: float  #: at which the sum fails the candidate

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSONB column or a chart."""
        return {
            "phase": self.phase.value,
            "why": self.why,
            "e_value": self.e_value,
            "threshold": self.threshold,
            "metrics": [metric.to_json() for metric in self.metrics],
        }


@dataclass(frozen=True)
class Baseline:
    """How stable did while it still had traffic beside the candidate."""

    units: int
    failure_rate: float
    violation_rate: float

    @classmethod
    def of(cls, votes: Iterable[Vote]) -> Baseline:
        """Measured on the stable units of the steps that had a control arm."""
        stable = [vote for vote in votes if vote.arm is Arm.STABLE and 0 < vote.weight < 1]
        return cls(len(stable), _share(stable, "failure") or 0.0, _share(stable, "violation") or 0.0)


# --- shadow ---------------------------------------------------------------------------


def analyse_shadow(pairs: Iterable[Pair], plan: RolloutPlan, waited_seconds: float = 0.0) -> Analysis:
    """Compare candidate and stable on the same requests.

    Only pairs on which they differ say anything of failures, and of those each unit's first.
    """
    if plan.shadow is None:
        raise ValueError("the plan has no shadow step")
    ordered = sorted(pairs, key=lambda pair: (pair.at, pair.unit))
    tolerances = plan.tolerances
    e_values = {
        "failure": _discordant(ordered, "failed", tolerances.failure_ratio),
        "violation": _discordant(ordered, "violated", tolerances.violation_ratio),
        "latency": _differences(ordered, "latency_ms", tolerances.latency_ratio),
    }
    if tolerances.cost_ratio is not None:
        e_values["cost"] = _differences(ordered, "cost_usd", tolerances.cost_ratio)
    count = len(ordered)
    metrics = [
        _metric(plan, "shadow", name, e, _shadow_values(ordered, name), (count, count))
        for name, e in e_values.items()
    ]
    missing = "" if count >= plan.shadow.min_pairs else f"{count} of {plan.shadow.min_pairs} pairs"
    broken = "" if count else "no pairs were logged"
    return _conclude(plan, "shadow", metrics, missing, broken, waited_seconds, plan.shadow.max_wait_seconds)


def _discordant(pairs: Iterable[Pair], name: str, tolerance: float) -> float:
    bet = LabelBet(tolerance)
    voted: set[str] = set()
    for pair in pairs:
        candidate, stable = bool(getattr(pair.candidate, name)), bool(getattr(pair.stable, name))
        if candidate is not stable and pair.unit not in voted:
            voted.add(pair.unit)
            bet.failure(candidate=candidate, weight=0.5)
    return bet.e_value


def _differences(pairs: Iterable[Pair], name: str, tolerance: float) -> float:
    bet = PairBet()
    voted: set[str] = set()
    for pair in pairs:
        candidate, stable = _log(getattr(pair.candidate, name)), _log(getattr(pair.stable, name))
        if pair.clean and candidate is not None and stable is not None and pair.unit not in voted:
            voted.add(pair.unit)
            bet.difference(candidate - stable - math.log(tolerance))
    return bet.e_value


def _shadow_values(pairs: Sequence[Pair], name: str) -> tuple[float | None, float | None]:
    candidate, stable = [pair.candidate for pair in pairs], [pair.stable for pair in pairs]
    if name in ("failure", "violation"):
        field = "failed" if name == "failure" else "violated"
        return _mean(getattr(row, field) for row in candidate), _mean(getattr(row, field) for row in stable)
    field = "latency_ms" if name == "latency" else "cost_usd"
    return _median(getattr(row, field) for row in candidate), _median(getattr(row, field) for row in stable)


# --- canary ---------------------------------------------------------------------------


def analyse_canary(
    votes: Iterable[Vote],
    plan: RolloutPlan,
    step: int,
    waited_seconds: float,
    baseline: Baseline | None = None,
) -> Analysis:
    """Compare the arms on every vote since the first canary step; count units of this step.

    ``votes`` are those of the whole rollout. At weight 1.0 no control arm is left, and the
    candidate is held against the rate that stable had (``baseline``; taken from the votes
    when not given).
    """
    ordered = sorted(votes, key=lambda vote: (vote.at, vote.unit))
    current = plan.canary[step]
    if current.weight >= 1:
        return _analyse_full(ordered, plan, current, waited_seconds, baseline or Baseline.of(ordered))
    here = [vote for vote in ordered if math.isclose(vote.weight, current.weight, abs_tol=1e-6)]
    arms = {arm: [vote for vote in here if vote.arm is arm] for arm in (Arm.CANDIDATE, Arm.STABLE)}
    units = (len(arms[Arm.CANDIDATE]), len(arms[Arm.STABLE]))
    metrics = [
        _metric(
            plan,
            "canary",
            name,
            e,
            (_value(arms[Arm.CANDIDATE], name), _value(arms[Arm.STABLE], name)),
            units,
        )
        for name, e in _canary_e_values(ordered, plan).items()
    ]
    missing = _missing_units(units, current)
    return _conclude(
        plan, "canary", metrics, missing, _broken(ordered, here), waited_seconds, current.max_wait_seconds
    )


def _canary_e_values(votes: Sequence[Vote], plan: RolloutPlan) -> dict[str, float]:
    tolerances = plan.tolerances
    e_values = {
        "failure": _labels(votes, lambda vote: vote.failed, tolerances.failure_ratio),
        "violation": _labels(votes, lambda vote: vote.violated, tolerances.violation_ratio),
        "latency": _scores(votes, lambda vote: vote.latency_ms, tolerances.latency_ratio),
    }
    if tolerances.cost_ratio is not None:
        e_values["cost"] = _scores(votes, lambda vote: vote.cost_usd, tolerances.cost_ratio)
    return e_values


def _labels(votes: Iterable[Vote], bad: Callable[[Vote], bool], tolerance: float) -> float:
    bet = RestartingLabelBet(tolerance)
    weight = None
    for vote in votes:
        if not bad(vote):
            continue
        if weight is not None and vote.weight != weight:
            bet.restart()
        weight = vote.weight
        bet.failure(candidate=vote.arm is Arm.CANDIDATE, weight=vote.weight)
    return bet.e_value


def _scores(votes: Iterable[Vote], value: Callable[[Vote], float | None], tolerance: float) -> float:
    bet = LogitBet()
    scored = [(vote.scored, _log(value(vote))) for vote in votes]
    known = [(draw, log) for draw, log in scored if draw is not None and log is not None]
    for draw, log in sorted(known, key=lambda each: each[0].at):
        candidate = draw.arm is Arm.CANDIDATE
        bet.score(log - math.log(tolerance) if candidate else log, candidate=candidate, weight=draw.weight)
    return bet.e_value


def _missing_units(units: tuple[int, int], step: CanaryStep) -> str:
    candidate, stable = units
    if candidate < step.min_units:
        return f"{candidate} of {step.min_units} units on the candidate"
    return "" if stable else "no unit on stable to compare with"


def _broken(votes: Sequence[Vote], here: Sequence[Vote]) -> str:
    if not here:
        return "no rows were logged at this step"
    bet = split_bet()
    for vote in votes:
        bet.failure(candidate=vote.first.arm is Arm.CANDIDATE, weight=vote.first.weight)
    if bet.e_value < SPLIT_LIMIT:
        return ""
    return f"traffic is not split as the route says (e-value {bet.e_value:.3g})"


# --- all traffic ----------------------------------------------------------------------


def _analyse_full(
    votes: Sequence[Vote], plan: RolloutPlan, step: CanaryStep, waited_seconds: float, baseline: Baseline
) -> Analysis:
    """Units that begin and go on at weight 1.0, one outcome each.

    An open conversation counts as good until it fails. Wealth only grows when a good vote
    turns bad, so the wealth seen now never exceeds that of the final votes, and the bound
    holds at every look.
    """
    here = [vote for vote in votes if vote.weight >= 1 and vote.arm is Arm.CANDIDATE]
    tolerances = plan.tolerances
    metrics = []
    for name, rate in (("failure", baseline.failure_rate), ("violation", baseline.violation_rate)):
        limit = min(max(tolerances.full_ratio * rate, tolerances.full_floor), 0.9)
        bet = FixedRateBet(limit)
        for vote in here:
            bet.outcome(failed=vote.failed if name == "failure" else vote.violated)
        values = (_share(here, name), rate if baseline.units else None)
        metrics.append(_metric(plan, "full", name, bet.e_value, values, (len(here), baseline.units)))
    missing = "" if len(here) >= step.min_units else f"{len(here)} of {step.min_units} units on the candidate"
    broken = "" if here else "no rows were logged at this step"
    return _conclude(plan, "full", metrics, missing, broken, waited_seconds, step.max_wait_seconds)


# --- from numbers to words ------------------------------------------------------------


def _metric(
    plan: RolloutPlan,
    phase: str,
    name: str,
    e_value: float,
    values: tuple[float | None, float | None],
    units: tuple[int, int],
) -> MetricVerdict:
    threshold = 1 / (plan.alpha * PHASE_SHARES[phase] * METRIC_SHARES[name])
    word, why = Phase.SUCCESSFUL, "no evidence against the candidate"
    if e_value >= threshold:
        word, why = Phase.FAILED, f"worse than tolerated: e-value {e_value:.3g}, limit {threshold:.3g}"
    elif not min(units) or None in values:
        word, why = Phase.RUNNING, "nothing to compare yet"
    elif e_value > plan.hold_above:
        word, why = Phase.RUNNING, f"leans against the candidate: e-value {e_value:.3g}"
    return MetricVerdict(name, word, *values, e_value, threshold, *units, why)


def _conclude(
    plan: RolloutPlan,
    phase: str,
    metrics: Sequence[MetricVerdict],
    missing: str,
    broken: str,
    waited_seconds: float,
    max_wait_seconds: float,
) -> Analysis:
    """Failed, then not measurable, then not enough; what is left is success."""
    threshold = 1 / (plan.alpha * PHASE_SHARES[phase])
    total = sum(METRIC_SHARES[metric.name] * metric.e_value for metric in metrics)
    leaning = [metric.name for metric in metrics if metric.e_value > plan.hold_above]
    late = waited_seconds >= max_wait_seconds
    if total >= threshold:
        top = max(metrics, key=lambda metric: METRIC_SHARES[metric.name] * metric.e_value)
        word, why = (
            Phase.FAILED,
            f"{top.name}: candidate {_number(top.candidate)}, stable {_number(top.stable)}",
        )
    elif broken:
        nothing_due = missing and waited_seconds < plan.due_seconds
        word, why = (Phase.RUNNING, missing) if nothing_due else (Phase.ERROR, broken)
    elif missing:
        word, why = Phase.RUNNING, missing
    elif leaning:
        word, why = Phase.RUNNING, f"{' and '.join(leaning)} lean against the candidate, short of proof"
    else:
        word, why = Phase.SUCCESSFUL, "enough units, and no evidence against the candidate"
    if late and word in (Phase.RUNNING, Phase.ERROR):
        word, why = Phase.INCONCLUSIVE, f"after {waited_seconds:.0f} s: {why}"
    return Analysis(word, tuple(metrics), why, total, threshold)


def _value(votes: Sequence[Vote], name: str) -> float | None:
    if name == "latency":
        return _median(vote.latency_ms for vote in votes)
    if name == "cost":
        return _median(vote.cost_usd for vote in votes)
    return _share(votes, name)


def _share(votes: Sequence[Vote], name: str) -> float | None:
    return _mean(vote.failed if name == "failure" else vote.violated for vote in votes)


def _mean(flags: Iterable[bool]) -> float | None:
    values = list(flags)
    return sum(values) / len(values) if values else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None and value > 0 and math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
