"""Tells somebody that a budget of a key or a use case is spent: an incident, once for each day or month.

Gateways act on a spent budget themselves, within a second or so; here it only becomes known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from storage import flags, identities, interactions, usage, use_cases
from storage.clock import now
from storage.database import Connection, Database, DatabaseUnavailable, lock_in_transaction
from storage.routing import Limits
from storage.servings import read_limits, read_serving
from storage.usage import UsageTotal
from storage.vocabulary import Severity

log = logging.getLogger(__name__)

_EVERY_SECONDS = 15.0
CATEGORY = "over_budget"


@dataclass(frozen=True, slots=True)
class Overrun:
    """One budget that is spent."""

    subject: str
    period: str  #: day or month
    budget_usd: Decimal
    spent_usd: Decimal
    then: str  #: what gateways do about it


async def watch(database: Database, stop: asyncio.Event, every_seconds: float = _EVERY_SECONDS) -> None:
    """Look at all budgets until told to stop. Several workers may: each overrun is told once."""
    while not stop.is_set():
        try:
            await tell_once(database)
        except DatabaseUnavailable as error:
            log.warning("could not look at the budgets: %s", error)
        except Exception:
            log.exception("the budgets could not be looked at, trying again later")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_seconds)


async def tell_once(database: Database) -> list[Overrun]:
    """Open an incident for each budget that is spent and was not told of yet; those."""
    today = now().date()
    async with database.connection() as connection:
        limited = await _limited(connection)
        totals = await usage.totals(connection, [*limited], today)
    spent = [each for total in totals for each in _overruns(total, limited[total.subject])]
    return [each for each in spent if await _tell(database, each, f"{today:%Y-%m-%d}")]


async def _limited(connection: Connection) -> dict[str, Limits]:
    """The limits that name a budget, by subject."""
    found = {
        f"use_case:{each.name}": read_serving(each.name, each.serving).limits
        for each in await use_cases.list_all(connection)
    }
    found |= {
        f"key:{each.id}": read_limits(each.id, each.limits) for each in await identities.list_keys(connection)
    }
    return {
        subject: limits
        for subject, limits in found.items()
        if limits.usd_per_day is not None or limits.usd_per_month is not None
    }


def _overruns(total: UsageTotal, limits: Limits) -> Iterator[Overrun]:
    spent = (
        ("day", limits.usd_per_day, total.day_cost_usd),
        ("month", limits.usd_per_month, total.month_cost_usd),
    )
    for period, budget, cost in spent:
        if budget is not None and cost >= budget:
            yield Overrun(total.subject, period, budget, cost, limits.over_budget)


async def _tell(database: Database, overrun: Overrun, day: str) -> bool:
    """Whether this is news; then it is an incident."""
    flag = f"{CATEGORY}:{overrun.subject}:{overrun.period}"
    term = day if overrun.period == "day" else day[:7]
    async with database.transaction() as connection:
        await lock_in_transaction(connection, CATEGORY)
        if await flags.get(connection, flag) == term:
            return False
        await flags.put(connection, flag, term, "worker")
        await interactions.record_incident(
            connection,
            use_case=overrun.subject.removeprefix("use_case:"),
            category=CATEGORY,
            severity=Severity.MEDIUM,
            summary=f"The budget of {overrun.subject} for this {overrun.period} is spent: "
            f"${overrun.spent_usd:.2f} of ${overrun.budget_usd:.2f}",
            intervention=overrun.then,
            details={
                "subject": overrun.subject,
                "period": overrun.period,
                "budget_usd": str(overrun.budget_usd),
                "spent_usd": str(overrun.spent_usd),
            },
        )
    return True
