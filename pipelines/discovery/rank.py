"""The ranking: which offerings are worth a test or a rollout for a use case, in which order, and why.

Constraints come first. What is left is ordered by the expected cost of one solved request at the use
case's own token profile, and told apart in two lists: what was measured here and passed may be
deployed, everything else is at best worth measuring. The arithmetic is exact and the same for every
reader; nothing in it is a model's opinion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

from pipelines.context import Run
from pipelines.discovery.constraints import Exclusion, Situation, refuse
from pipelines.discovery.evidence import Measured, RankingError, load_question
from pipelines.discovery.posterior import Posterior
from storage import audit, registry
from storage.ids import derived_id
from storage.registry import Offering

DEPLOYABLE, WORTH_MEASURING = "deployable", "worth_measuring"
ACTOR = "pipeline"
MOST_CANDIDATES = 100
_MOST_EXAMPLES = 10

__all__ = ["Candidate", "RankingError", "RankingResult", "TokenProfile", "rank_offerings", "run_rank"]


@dataclass(frozen=True, kw_only=True)
class TokenProfile:
    """What one request of the use case is made of."""

    prompt_tokens: Decimal = Decimal(300)
    completion_tokens: Decimal = Decimal(200)
    monthly_requests: Decimal = Decimal(0)
    logged: bool = False  #: false: too little traffic to tell, these are the defaults

    def cost(self, price_input: Decimal | None, price_output: Decimal | None) -> Decimal | None:
        """Of one request; None while either price is unknown."""
        if price_input is None or price_output is None:
            return None
        return price_input * self.prompt_tokens + price_output * self.completion_tokens


@dataclass(frozen=True)
class Candidate:
    """An offering that fulfils every demand."""

    offering: Offering
    cost: Decimal  #: of one request
    quality: Posterior
    measured: Measured | None
    expected_cost: Decimal  #: of one solved request

    @property
    def deployable(self) -> bool:
        """It was measured here, against what serves now, and passed."""
        return self.measured is not None and self.measured.counts and self.measured.passed

    @property
    def order(self) -> tuple[Any, ...]:
        """Cheapest solved request first. What is no worse in cost and quality is never behind."""
        names = (self.offering.provider, self.offering.model, self.offering.id)
        return self.expected_cost, self.cost, -self.quality.mean, names


@dataclass(frozen=True)
class RankingResult:
    """Candidates, best first, and why the others are none."""

    candidates: tuple[Candidate, ...]
    counts: Mapping[Exclusion, int]
    examples: Mapping[Exclusion, tuple[tuple[Offering, str], ...]]
    stable_cost: Decimal | None = None

    def excluded_json(self) -> dict[str, Any]:
        """Counts by reason, and a few of each by name."""
        return {
            "counts": {reason.value: count for reason, count in self.counts.items()},
            "examples": {
                reason.value: [
                    {"offering_id": each.id, "name": f"{each.provider}/{each.model}", "why": why}
                    for each, why in found
                ]
                for reason, found in self.examples.items()
            },
        }


@dataclass
class _Refused:
    """Refusals as they are found."""

    found: dict[Exclusion, list[tuple[Offering, str]]] = field(default_factory=dict)

    def add(self, offering: Offering, reason: Exclusion, why: str) -> None:
        self.found.setdefault(reason, []).append((offering, why))

    def counts(self) -> dict[Exclusion, int]:
        return {reason: len(self.found[reason]) for reason in Exclusion if reason in self.found}

    def examples(self) -> dict[Exclusion, tuple[tuple[Offering, str], ...]]:
        return {
            reason: tuple(sorted(self.found[reason], key=_by_name)[:_MOST_EXAMPLES])
            for reason in Exclusion
            if reason in self.found
        }


def _by_name(refused: tuple[Offering, str]) -> tuple[str, str, str]:
    """The same ten are shown each time."""
    offering, _ = refused
    return offering.provider, offering.model, offering.id


def rank_offerings(
    offerings: Iterable[Offering],
    *,
    situation: Situation,
    profile: TokenProfile,
    stable_prices: tuple[Decimal, Decimal] | None = None,
    measured: Mapping[str, Measured] | None = None,
    most: int = MOST_CANDIDATES,
) -> RankingResult:
    """Order the offerings for a use case; the order in which they come in does not matter."""
    refused, candidates = _Refused(), []
    for offering in offerings:
        cost = profile.cost(offering.price_input, offering.price_output)
        refusal = refuse(offering, cost, situation)
        if refusal is not None or cost is None:
            refused.add(offering, *(refusal or (Exclusion.PRICE_UNKNOWN, "its price is not known")))
        else:
            candidates.append(_candidate(offering, cost, (measured or {}).get(offering.id)))
    candidates.sort(key=lambda each: each.order)
    for beyond in candidates[most:]:
        refused.add(beyond.offering, Exclusion.OUTRANKED, f"{most} others come before it")
    stable_cost = profile.cost(*stable_prices) if stable_prices else None
    # A price of nothing is a price that nobody wrote down.
    return RankingResult(tuple(candidates[:most]), refused.counts(), refused.examples(), stable_cost or None)


def _candidate(offering: Offering, cost: Decimal, measured: Measured | None) -> Candidate:
    counted = measured if measured is not None and measured.counts else None
    quality = Posterior.after(passes=counted.passes if counted else 0, cases=counted.cases if counted else 0)
    return Candidate(offering, cost, quality, measured, cost / Decimal(repr(quality.mean)))


def describe(candidate: Candidate, stable_cost: Decimal | None, monthly_requests: Decimal) -> dict[str, Any]:
    """A candidate as it is stored and shown: plain numbers, and one sentence why."""
    saving = None if stable_cost is None else stable_cost - candidate.cost
    share = None if saving is None or stable_cost is None else float(saving / stable_cost)
    quality, measured = candidate.quality, candidate.measured
    return {
        "offering_id": candidate.offering.id,
        "provider": candidate.offering.provider,
        "model": candidate.offering.model,
        "cost_per_request_usd": float(candidate.cost),
        "cost_per_solved_usd": float(candidate.expected_cost),
        "saving_share": None if share is None else round(share, 6),
        "expected_monthly_saving_usd": None if saving is None else float(saving * monthly_requests),
        "quality": {
            "kind": "measured" if quality.cases else "prior",
            "mean": round(quality.mean, 6),
            "lower_bound": round(quality.lower_bound, 6),
            "passes": quality.passes,
            "cases": quality.cases,
        },
        "list": DEPLOYABLE if candidate.deployable else WORTH_MEASURING,
        "evaluation_id": measured.evaluation_id if measured else None,
        "release_id": measured.release_id if measured else None,
        "why": f"{_price_words(candidate, share)}; {_quality_words(candidate)}.",
    }


def _price_words(candidate: Candidate, share: float | None) -> str:
    words = f"Costs ${candidate.cost:.6f} a request"
    if share is None:
        return f"{words}; what serves now has no known price to compare with"
    if share == 0:
        return f"{words}, as much as what serves now"
    return f"{words}, {abs(share):.0%} {'less' if share > 0 else 'more'} than what serves now"


def _quality_words(candidate: Candidate) -> str:
    measured, quality = candidate.measured, candidate.quality
    if measured is None:
        return "never measured here"
    if not measured.counts:
        return f"measured here, but {measured.why_not}"
    verb = "passed its evaluation here" if measured.passed else "its evaluation here did not pass"
    return f"{verb}, {quality.passes} of {quality.cases} cases solved"


async def run_rank(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rank the catalogue for a use case; raises :class:`RankingError` if there is nothing to rank for."""
    return await run.step("rank", partial(_rank, run, str(arguments["use_case"])))


async def _rank(run: Run, use_case: str) -> dict[str, Any]:
    ranking_id = derived_id("rank", run.id)
    question = await load_question(run.context.database, run.context.policy, use_case)
    async with run.context.database.transaction() as connection:
        ranking = await registry.find_ranking(connection, ranking_id)
        if ranking is None:
            profile = TokenProfile(**question.profile)
            result = rank_offerings(
                await registry.all_offerings(connection),
                situation=question.situation,
                profile=profile,
                stable_prices=question.stable_prices,
                measured=question.measured,
            )
            await registry.save_ranking(
                connection,
                ranking_id=ranking_id,
                use_case=use_case,
                stable_offering=question.stable_offering,
                profile=_profile_json(profile, result.stable_cost),
                candidates=[
                    describe(each, result.stable_cost, profile.monthly_requests) for each in result.candidates
                ],
                excluded=result.excluded_json(),
            )
            ranking = await registry.find_ranking(connection, ranking_id)
        if ranking is None:
            raise RankingError(f"the ranking {ranking_id} is gone while it is being made")
        summary = _summary(ranking.candidates, ranking.excluded)
        await audit.append_once(
            connection,
            actor=ACTOR,
            event="ranking.finished",
            subject=ranking_id,
            data={"use_case": use_case, **summary},
        )
    return {"ranking_id": ranking_id, "use_case": use_case, **summary}


def _profile_json(profile: TokenProfile, stable_cost: Decimal | None) -> dict[str, Any]:
    return {
        "prompt_tokens": float(profile.prompt_tokens),
        "completion_tokens": float(profile.completion_tokens),
        "monthly_requests": float(profile.monthly_requests),
        "source": "logged" if profile.logged else "default",
        "stable_cost_per_request_usd": None if stable_cost is None else float(stable_cost),
    }


def _summary(candidates: Sequence[Mapping[str, Any]], excluded: Mapping[str, Any]) -> dict[str, Any]:
    lists = [each["list"] for each in candidates]
    names = ("offering_id", "provider", "model", "saving_share", "list", "why")
    return {
        "candidates": len(candidates),
        "deployable": lists.count(DEPLOYABLE),
        "worth_measuring": lists.count(WORTH_MEASURING),
        "excluded": dict(excluded["counts"]),
        "best": {name: candidates[0][name] for name in names} if candidates else None,
    }
