"""What a ranking is asked with: the use case's demands, its traffic, and what was measured for it.

Reads storage; judges only how far old evidence still counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from pipelines.context import PipelineError
from pipelines.discovery.constraints import Demands, Situation
from policies.policy import Policy
from storage import clock, deployments, evaluations, interactions, registry, rollouts, routes, use_cases
from storage.database import Database
from storage.evaluations import Evaluation
from storage.use_cases import UseCase
from storage.vocabulary import Arm, EvaluationStatus, RolloutState

#: Traffic of this long tells what a request is made of, if there was at least this much of it.
PROFILE_WINDOW = timedelta(days=7)
FEWEST_REQUESTS = 10
#: How long a failed evaluation, and a rollback, speak against trying the same model again.
FAILURE_COUNTS = timedelta(days=7)
ROLLBACK_COUNTS = timedelta(days=30)
_MONTH_DAYS = 30


class RankingError(PipelineError):
    """There is nothing to rank for; says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the last evaluation of an offering for this use case said."""

    evaluation_id: str
    release_id: str
    passed: bool
    passes: int
    cases: int
    why_not: str | None = None  #: why it no longer counts; None: it does

    @property
    def counts(self) -> bool:
        """It was made against what serves now, on the suite of now, not too long ago."""
        return self.why_not is None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that a ranking is computed from, beside the catalogue."""

    situation: Situation
    profile: Mapping[str, Any]
    stable_prices: tuple[Decimal, Decimal]
    stable_offering: str | None
    measured: Mapping[str, Measured]


async def load_question(database: Database, policy: Policy, use_case_name: str) -> Question:
    """Look up what a use case demands and what is known of it."""
    now = clock.now()
    limits = policy.rules_for(use_case_name).limits
    async with database.connection() as connection:
        use_case = await use_cases.find(connection, use_case_name)
        route = await routes.current_route(connection, use_case_name)
        stable_id = route.release_of(Arm.STABLE) if route else None
        stable = await deployments.find_release(connection, stable_id) if stable_id else None
        if use_case is None:
            raise RankingError(f"there is no use case {use_case_name!r}")
        if stable is None:
            raise RankingError(f"nothing serves {use_case_name} yet; give it a stable release first")
        offering = await registry.find_by_model(connection, stable.provider, stable.model)
        health = await interactions.health(connection, since=now - PROFILE_WINDOW, use_case=use_case.name)
        found = await evaluations.list_evaluations(connection, use_case.name, limit=500)
    latest = latest_evaluations(found)
    fresh_hours = limits.max_evaluation_age_hours
    measured = {
        offering_id: measured_by(each, use_case, stable.id, now - timedelta(hours=fresh_hours))
        for offering_id, each in latest.items()
    }
    failed = {key: each for key, each in latest.items() if _failed_lately(each, use_case, now)}
    budget = use_case.budget_usd_per_month
    requests = Decimal(health.requests) * _MONTH_DAYS / PROFILE_WINDOW.days
    situation = Situation(
        now=now,
        demands=Demands.from_json(use_case.constraints),
        current=(stable.provider, stable.model),
        failed=frozenset(failed),
        rolled_back=await _rolled_back(database, use_case.name, now),
        horizon=timedelta(days=limits.retirement_horizon_days),
        monthly_requests=requests,
        budget_usd_per_month=None if budget is None else Decimal(str(budget)),
        reasons={key: f"its evaluation here failed: {each.reason}" for key, each in failed.items()},
    )
    profile: dict[str, Any] = {"monthly_requests": requests}
    if health.requests >= FEWEST_REQUESTS and health.prompt_tokens > 0:
        profile |= {
            "prompt_tokens": Decimal(str(round(health.prompt_tokens, 3))),
            "completion_tokens": Decimal(str(round(health.completion_tokens, 3))),
            "logged": True,
        }
    return Question(
        situation=situation,
        profile=profile,
        stable_prices=(stable.price_input, stable.price_output),
        stable_offering=offering.id if offering else None,
        measured=measured,
    )


def latest_evaluations(found: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """The newest finished evaluation of each offering that could be measured."""
    settled = (EvaluationStatus.PASSED, EvaluationStatus.FAILED)
    latest: dict[str, Evaluation] = {}
    for each in found:  # newest first
        if each.offering_id is not None and each.status in settled:
            latest.setdefault(each.offering_id, each)
    return latest


def measured_by(
    evaluation: Evaluation, use_case: UseCase, stable_release_id: str, oldest: datetime
) -> Measured:
    """What an evaluation says now: evidence against another stable, or on another suite, is history."""
    summary = evaluation.summary or {}
    cases = int(summary.get("cases", 0))
    passes = round(cases * float(summary.get("pass_rate_candidate") or 0))
    why_not = None
    if evaluation.stable_release_id != stable_release_id:
        why_not = "against a release that no longer serves"
    elif evaluation.suite_digest != (use_case.suite_digest or ""):
        why_not = "on a suite that has changed since"
    elif (evaluation.ended_at or evaluation.created_at) < oldest:
        why_not = "too long ago"
    return Measured(
        evaluation_id=evaluation.id,
        release_id=evaluation.candidate_release_id,
        passed=evaluation.status == EvaluationStatus.PASSED,
        passes=min(passes, cases),
        cases=cases,
        why_not=why_not,
    )


def _failed_lately(evaluation: Evaluation, use_case: UseCase, now: datetime) -> bool:
    ended = evaluation.ended_at or evaluation.created_at
    same_suite = evaluation.suite_digest == (use_case.suite_digest or "")
    return evaluation.status == EvaluationStatus.FAILED and same_suite and ended > now - FAILURE_COUNTS


async def _rolled_back(database: Database, use_case: str, now: datetime) -> frozenset[tuple[str, str]]:
    """Provider and model of every candidate that was taken back lately."""
    models = set()
    async with database.connection() as connection:
        for rollout in await rollouts.list_rollouts(connection, use_case):
            ended = rollout.ended_at
            if rollout.state != RolloutState.ROLLED_BACK or ended is None or ended < now - ROLLBACK_COUNTS:
                continue
            release = await deployments.find_release(connection, rollout.candidate_release_id)
            if release is not None:
                models.add((release.provider, release.model))
    return frozenset(models)
