"""What an offering must fulfil before it is worth a thought: each refusal with its reason.

Pure. The order is fixed, so that the same offering is refused for the same reason everywhere;
what nobody could change (it cannot be called, it is gone) comes before what a setting could.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from storage.registry import Offering
from storage.vocabulary import Lifecycle


class ConstraintsError(ValueError):
    """A use case demands something that cannot be read; says what and how it is written."""


class Exclusion(StrEnum):
    """Why an offering is no candidate."""

    UNREACHABLE = "unreachable"  #: no configured provider serves it
    MISSING = "missing"  #: its source no longer lists it
    RETIRED = "retired"
    RETIRING_SOON = "retiring_soon"
    CURRENT_MODEL = "current_model"
    PROVIDER_NOT_ALLOWED = "provider_not_allowed"
    CONTEXT_UNKNOWN = "context_unknown"
    CONTEXT_TOO_SMALL = "context_too_small"
    CAPABILITY_MISSING = "capability_missing"
    PRICE_UNKNOWN = "price_unknown"
    OVER_PRICE_LIMIT = "over_price_limit"
    OVER_BUDGET = "over_budget"
    FAILED_RECENTLY = "failed_recently"
    ROLLED_BACK_RECENTLY = "rolled_back_recently"
    OUTRANKED = "outranked"  #: fulfils everything, and the list is long enough without it


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a use case demands of whatever answers."""

    context: int | None = None  #: tokens
    capabilities: frozenset[str] = frozenset()
    providers: frozenset[str] | None = None  #: only these; None: any that is configured
    max_price_input: Decimal | None = None  #: USD per token
    max_price_output: Decimal | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Demands:
        """Read a use case's constraints. An unknown one is an error: it would silently not hold."""
        known = {"context", "capabilities", "providers", "max_price_input", "max_price_output"}
        unknown = sorted(set(document) - known)
        if unknown:
            names = ", ".join(sorted(known))
            raise ConstraintsError(f"the constraint {unknown[0]!r} is not known; known: {names}")
        context = document.get("context")
        if context is not None and (isinstance(context, bool) or not isinstance(context, int)):
            raise ConstraintsError(f"constraint context is a whole number of tokens, not {context!r}")
        providers = _names(document, "providers")
        return cls(
            context=context,
            capabilities=_names(document, "capabilities") or frozenset(),
            providers=providers,
            max_price_input=_price(document, "max_price_input"),
            max_price_output=_price(document, "max_price_output"),
        )


def _names(document: Mapping[str, Any], key: str) -> frozenset[str] | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ConstraintsError(f"constraint {key} is a list of names, not {value!r}")
    return frozenset(value)


def _price(document: Mapping[str, Any], key: str) -> Decimal | None:
    value = document.get(key)
    if value is None:
        return None
    try:
        return Decimal(str(value))
    except InvalidOperation:
        raise ConstraintsError(f"constraint {key} is US dollars per token, not {value!r}") from None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What an offering is judged by, beside itself."""

    now: datetime
    demands: Demands
    current: tuple[str, str]  #: provider and model that serve the use case now
    failed: frozenset[str] = frozenset()  #: offerings whose evaluation failed lately
    rolled_back: frozenset[tuple[str, str]] = frozenset()  #: (provider, model) rolled back lately
    horizon: timedelta = timedelta(days=90)
    monthly_requests: Decimal = Decimal(0)
    budget_usd_per_month: Decimal | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)  #: offering id: what its evaluation said


def refuse(offering: Offering, cost: Decimal | None, situation: Situation) -> tuple[Exclusion, str] | None:
    """The first reason against an offering, in words too; None if there is none."""
    return next(_refusals(offering, cost, situation), None)


def _refusals(
    offering: Offering, cost: Decimal | None, situation: Situation
) -> Iterator[tuple[Exclusion, str]]:
    yield from _availability(offering, situation)
    yield from _demands(offering, situation.demands)
    if cost is None:
        yield Exclusion.PRICE_UNKNOWN, "its price is not known, and unknown is not free"
    elif situation.budget_usd_per_month is not None:
        monthly = cost * situation.monthly_requests
        if monthly > situation.budget_usd_per_month:
            words = f"${monthly:.2f} a month, the budget is ${situation.budget_usd_per_month:.2f}"
            yield Exclusion.OVER_BUDGET, words
    if offering.id in situation.failed:
        yield (
            Exclusion.FAILED_RECENTLY,
            situation.reasons.get(offering.id, "its last evaluation here failed"),
        )
    if (offering.provider, offering.model) in situation.rolled_back:
        yield Exclusion.ROLLED_BACK_RECENTLY, "it was rolled back here lately"


def _availability(offering: Offering, situation: Situation) -> Iterator[tuple[Exclusion, str]]:
    if not offering.reachable:
        yield Exclusion.UNREACHABLE, f"no configured provider serves it ({offering.provider})"
    if offering.lifecycle == Lifecycle.MISSING:
        yield Exclusion.MISSING, "its source no longer lists it"
    ends = offering.retires_at
    if offering.lifecycle == Lifecycle.RETIRED or (ends is not None and ends <= situation.now):
        yield Exclusion.RETIRED, f"it was retired{f' on {ends:%Y-%m-%d}' if ends else ''}"
    elif ends is not None and ends <= situation.now + situation.horizon:
        yield Exclusion.RETIRING_SOON, f"it retires on {ends:%Y-%m-%d}"
    if (offering.provider, offering.model) == situation.current:
        yield Exclusion.CURRENT_MODEL, "it is what serves the use case now"


def _demands(offering: Offering, demands: Demands) -> Iterator[tuple[Exclusion, str]]:
    if demands.providers is not None and offering.provider not in demands.providers:
        yield Exclusion.PROVIDER_NOT_ALLOWED, f"the use case does not allow {offering.provider}"
    if demands.context is not None and offering.context_tokens is None:
        yield Exclusion.CONTEXT_UNKNOWN, f"its context is not known, {demands.context} tokens are needed"
    elif demands.context is not None and (offering.context_tokens or 0) < demands.context:
        words = f"its context is {offering.context_tokens} tokens, {demands.context} are needed"
        yield Exclusion.CONTEXT_TOO_SMALL, words
    lacking = demands.capabilities.difference(offering.capabilities)
    if lacking:
        yield Exclusion.CAPABILITY_MISSING, f"it is not known to offer {', '.join(sorted(lacking))}"
    for side in ("input", "output"):
        limit, price = getattr(demands, f"max_price_{side}"), getattr(offering, f"price_{side}")
        if limit is not None and price is not None and price > limit:
            yield Exclusion.OVER_PRICE_LIMIT, f"its {side} price ${price:f} is above the limit ${limit:f}"
