"""Signals: what the facts mean, as typed observations with a sentence from a template.

Pure: the same facts give the same signals in the same order. Knows nothing of what to do about them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from meta_agent.fleet_facts import (
    CandidateFact,
    EvaluationFact,
    FleetFacts,
    HealthFact,
    StableFact,
    UseCaseFacts,
)
from storage.vocabulary import EvaluationStatus, RolloutState, Severity

#: Units that a release must have answered before its failure rate means anything.
MIN_UNITS = 20
#: A stable release may fail this often whatever the one before it did.
FAILURE_FLOOR = 0.02
#: And this many times as often as the one before it.
FAILURE_RATIO = 2.0
#: Share of the month's budget from which spending is watched.
BUDGET_WATCH = 0.8
#: Days before a retirement at which a replacement is looked for, if policy does not ask for more.
SUNSET_DAYS = 90.0
#: How long the end of a rollout is still news.
ROLLBACK_NEWS_SECONDS = 86_400.0
_Z = 3.0  # one-sided, 1 in 740: an alert takes traffic away, chance must not raise it


class SignalKind(StrEnum):
    """What was observed."""

    CATALOGUE_STALE = "catalogue_stale"
    CATALOGUE_CHANGED = "catalogue_changed"
    CHEAPER_CANDIDATE_UNTESTED = "cheaper_candidate_untested"
    CANDIDATE_PROVEN = "candidate_proven"
    ROLLOUT_RUNNING = "rollout_running"
    ROLLOUT_ROLLED_BACK = "rollout_rolled_back"
    STABLE_DEGRADED = "stable_degraded"
    BUDGET_BURN = "budget_burn"
    SUNSET_AHEAD = "sunset_ahead"


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One observation. ``subject`` is the id it is about; ``alert`` asks for a reaction now."""

    kind: SignalKind
    severity: Severity
    sentence: str
    use_case: str | None = None
    subject: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    alert: bool = False
    note: str | None = None  #: words from outside, for people only

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept with cycles and decisions."""
        return {
            "kind": self.kind.value,
            "use_case": self.use_case,
            "subject": self.subject,
            "severity": self.severity.value,
            "alert": self.alert,
            "numbers": self.numbers,
            "sentence": self.sentence,
            "note": self.note,
        }

    def for_planner(self) -> dict[str, Any]:
        """The same without a word that somebody else wrote."""
        return {name: value for name, value in self.to_json().items() if name != "note"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signal:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "kind": SignalKind(data["kind"]), "severity": Severity(data["severity"])})


def assess(facts: FleetFacts) -> tuple[Signal, ...]:
    """Everything worth knowing about these facts, alerts first."""
    found = _catalogue(facts)
    for each in facts.use_cases:
        found += _use_case(facts, each)
    return tuple(sorted(found, key=lambda signal: not signal.alert))


def _catalogue(facts: FleetFacts) -> list[Signal]:
    ages = [
        each.attempt_age_seconds for each in facts.catalogue.sources if each.attempt_age_seconds is not None
    ]
    if ages and min(ages) < facts.scan_every_seconds:
        return []
    numbers = {"sources": float(len(facts.catalogue.sources)), "limit_seconds": facts.scan_every_seconds}
    if not ages:
        sentence = "No source has been scanned yet."
    else:
        numbers["age_seconds"] = min(ages)
        sentence = (
            f"The last scan is {min(ages):.0f} s old; one is due every {facts.scan_every_seconds:.0f} s."
        )
    return [
        Signal(kind=SignalKind.CATALOGUE_STALE, severity=Severity.LOW, sentence=sentence, numbers=numbers)
    ]


def _use_case(facts: FleetFacts, each: UseCaseFacts) -> list[Signal]:
    found = [
        _degraded(each),
        _rollout_running(each),
        _rolled_back(each),
        _changed(facts, each),
        _sunset(facts, each),
        _budget(each),
    ]
    return [
        *(signal for signal in found if signal),
        *(_proven(each, evaluation) for evaluation in proven(each)),
        *(_untested(each, candidate) for candidate in untested(facts, each)),
    ]


def failure_limit(stable: StableFact) -> float:
    """The failure rate from which a promoted release counts as degraded."""
    return max(FAILURE_FLOOR, FAILURE_RATIO * (stable.baseline_failure_rate or 0.0))


def rate_at_least(failures: int, requests: int, units: int) -> float:
    """A lower bound of the true failure rate (Wilson), as if each unit had spoken once.

    The requests of one conversation fail together, so they are not independent witnesses.

    >>> rate_at_least(0, 100, 100), round(rate_at_least(30, 100, 100), 2)
    (0.0, 0.18)
    """
    if requests == 0 or units == 0:
        return 0.0
    share, n, z = failures / requests, min(units, requests), _Z
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n))


def _degraded(each: UseCaseFacts) -> Signal | None:
    """The proof beyond chance is an alert; a rate that is merely over its limit is watched."""
    stable = each.stable
    if stable is None or stable.rollback_release_id is None:
        return None
    limit = failure_limit(stable)
    windows = (stable.recent, stable.since_promotion)
    over = next((window for window in windows if _is_over(window, limit)), None)
    if over is None and stable.alert is None:
        return None
    window = over or stable.recent
    rate = window.failure_rate or 0.0
    numbers = {"failure_rate": rate, "limit": limit, "units": float(window.units)}
    if stable.alert is not None:
        numbers |= {"alert_units": float(stable.alert.units), "bad_units": float(stable.alert.bad_units)}
    return Signal(
        kind=SignalKind.STABLE_DEGRADED,
        severity=Severity.CRITICAL if stable.alert else Severity.HIGH,
        alert=stable.alert is not None,
        use_case=each.name,
        subject=stable.release_id,
        numbers=numbers,
        sentence=f"The promoted release of {each.name} fails in {rate:.1%} of {window.requests} requests "
        f"from {window.units} units; {limit:.1%} is the limit.",
    )


def _is_over(window: HealthFact, limit: float) -> bool:
    return window.units >= MIN_UNITS and rate_at_least(window.failures, window.requests, window.units) > limit


def _rollout_running(each: UseCaseFacts) -> Signal | None:
    rollout = each.active_rollout
    if rollout is None:
        return None
    return Signal(
        kind=SignalKind.ROLLOUT_RUNNING,
        severity=Severity.MEDIUM if rollout.state is RolloutState.PAUSED else Severity.LOW,
        use_case=each.name,
        subject=rollout.rollout_id,
        numbers={"weight": rollout.weight, "step": float(rollout.step), "age_seconds": rollout.age_seconds},
        sentence=f"A rollout of {each.name} is {rollout.state.value} at {rollout.weight:.0%}; the analysis "
        f"says {rollout.phase.value if rollout.phase else 'nothing yet'}.",
    )


def _rolled_back(each: UseCaseFacts) -> Signal | None:
    rollout = each.last_rollout
    if (
        rollout is None
        or rollout.state is not RolloutState.ROLLED_BACK
        or rollout.age_seconds > ROLLBACK_NEWS_SECONDS
    ):
        return None
    why = f" for {' and '.join(rollout.failed_metrics)}" if rollout.failed_metrics else ""
    return Signal(
        kind=SignalKind.ROLLOUT_ROLLED_BACK,
        severity=Severity.HIGH,
        use_case=each.name,
        subject=rollout.rollout_id,
        numbers={"weight": rollout.weight, "age_seconds": rollout.age_seconds},
        sentence=f"The last rollout of {each.name} was rolled back{why} {rollout.age_seconds:.0f} s ago.",
        note=rollout.reason,
    )


def _changed(facts: FleetFacts, each: UseCaseFacts) -> Signal | None:
    if each.ranking_is_current or not any(source.offerings for source in facts.catalogue.sources):
        return None
    return Signal(
        kind=SignalKind.CATALOGUE_CHANGED,
        severity=Severity.LOW,
        use_case=each.name,
        subject=each.ranking.ranking_id if each.ranking else None,
        numbers={"newest_change_id": float(facts.catalogue.newest_change_id)},
        sentence=f"The ranking for {each.name} is older than what it was computed from."
        if each.ranking
        else f"There is no ranking for {each.name} yet.",
    )


def sunset_days(facts: FleetFacts, each: UseCaseFacts) -> float | None:
    """Days until the stable release's offering retires, if that is near enough to matter."""
    if each.stable is None or each.stable.retires_at is None:
        return None
    days = max(0.0, (each.stable.retires_at - facts.at).total_seconds() / 86_400)
    return days if days <= max(SUNSET_DAYS, each.retirement_horizon_days) else None


def _sunset(facts: FleetFacts, each: UseCaseFacts) -> Signal | None:
    days = sunset_days(facts, each)
    if days is None or each.stable is None:
        return None
    return Signal(
        kind=SignalKind.SUNSET_AHEAD,
        severity=Severity.HIGH if days <= each.retirement_horizon_days else Severity.MEDIUM,
        use_case=each.name,
        subject=each.stable.release_id,
        numbers={"days": days},
        sentence=f"What serves {each.name} retires in {days:.0f} days.",
    )


def _budget(each: UseCaseFacts) -> Signal | None:
    if not each.budget_month_usd:
        return None
    used = each.spend_month_usd / each.budget_month_usd
    # A projection from the first days of a month says nothing.
    early = each.month_elapsed_share < 0.1
    projected = used if early else used / each.month_elapsed_share
    if used < BUDGET_WATCH and projected <= 1.0:
        return None
    return Signal(
        kind=SignalKind.BUDGET_BURN,
        severity=Severity.HIGH if used >= 1.0 else Severity.MEDIUM,
        use_case=each.name,
        numbers={"used_share": used, "projected_share": projected, "budget_usd": each.budget_month_usd},
        sentence=f"{each.name} has used {used:.0%} of this month's budget and is heading for "
        f"{projected:.0%} of it.",
    )


def proven(each: UseCaseFacts) -> list[EvaluationFact]:
    """Candidates whose evidence holds and that were never rolled out, best saving first."""
    savings = _savings(each)
    found = [
        evaluation
        for evaluation in each.evaluations
        if evaluation.status is EvaluationStatus.PASSED
        and not evaluation.was_rolled_out
        and evaluation.age_hours < each.max_evaluation_age_hours
    ]
    return sorted(found, key=lambda evaluation: -savings.get(evaluation.offering_id, 0.0))


def _savings(each: UseCaseFacts) -> dict[str | None, float]:
    candidates = each.ranking.candidates if each.ranking else ()
    return {candidate.offering_id: candidate.saving_share or 0.0 for candidate in candidates}


def _proven(each: UseCaseFacts, evaluation: EvaluationFact) -> Signal:
    saving = _savings(each).get(evaluation.offering_id)
    return Signal(
        kind=SignalKind.CANDIDATE_PROVEN,
        severity=Severity.MEDIUM,
        use_case=each.name,
        subject=evaluation.release_id,
        numbers=evaluation.numbers | ({} if saving is None else {"saving_share": saving}),
        sentence=f"A candidate for {each.name} passed its evaluation and was never rolled out"
        + ("." if saving is None else f"; it would save {saving:.0%}."),
    )


def untested(facts: FleetFacts, each: UseCaseFacts) -> list[CandidateFact]:
    """Ranked candidates that are worth a test, best saving first.

    With a retirement ahead any candidate is worth one, cheaper or not.
    """
    if each.ranking is None or not each.ranking_is_current or each.stable is None:
        return []
    least = -math.inf if sunset_days(facts, each) is not None else facts.min_saving_share
    tested = {
        evaluation.offering_id for evaluation in each.evaluations if _still_counts(facts, each, evaluation)
    }
    found = [
        candidate
        for candidate in each.ranking.candidates
        if candidate.offering_id not in tested
        and candidate.offering_id != each.stable.offering_id
        and candidate.saving_share is not None
        and candidate.saving_share >= least
    ]
    return sorted(found, key=lambda candidate: (-(candidate.saving_share or 0.0), candidate.position))


def _still_counts(facts: FleetFacts, each: UseCaseFacts, evaluation: EvaluationFact) -> bool:
    """A pass that policy finds too old is no evidence any more, unless the candidate had its rollout."""
    if evaluation.status is EvaluationStatus.PASSED and not evaluation.was_rolled_out:
        return evaluation.age_hours < each.max_evaluation_age_hours
    if evaluation.status is EvaluationStatus.ERROR:  # nothing was measured: no evidence, only a pause
        return evaluation.age_hours < min(1.0, facts.retest_after_hours)
    return evaluation.age_hours < facts.retest_after_hours


def _untested(each: UseCaseFacts, candidate: CandidateFact) -> Signal:
    saving = candidate.saving_share or 0.0
    return Signal(
        kind=SignalKind.CHEAPER_CANDIDATE_UNTESTED,
        severity=Severity.LOW,
        use_case=each.name,
        subject=candidate.offering_id,
        numbers={"saving_share": saving, "position": float(candidate.position)},
        sentence=f"A candidate for {each.name} would save {saving:.0%} and has not been tested against "
        "what is stable now.",
    )
