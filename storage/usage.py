"""What was used of what is limited: requests, tokens and dollars by subject and day.

A subject is a key (``key:<id>``), a use case's live traffic (``use_case:<name>``) or its shadow copies
(``shadow:<name>``). Only :mod:`storage.interactions` adds to it, in the transaction that stores the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import is_one_of
from storage.tables.traffic import usage


@dataclass(frozen=True, slots=True)
class UsageDelta:
    """What a batch of interactions adds to a subject's day."""

    subject: str
    requests: int
    tokens: int
    cost_usd: Decimal
    day: date  #: in UTC, when the requests began


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What a subject has used on one day, and in the month up to and with that day."""

    subject: str
    day_requests: int
    day_tokens: int
    day_cost_usd: Decimal
    month_cost_usd: Decimal


#: How many days go into one statement: a statement holds 65,535 parameters at most.
_AT_ONCE = 1000


async def add(connection: AsyncConnection, deltas: Sequence[UsageDelta]) -> None:
    """Count; best as the last thing of a transaction, since others wait for the same subjects.

    In one order for everybody: two gateways that count the same subjects wait for one another, and never
    each for the other.
    """
    ordered = sorted(deltas, key=lambda delta: (delta.subject, delta.day))
    for start in range(0, len(ordered), _AT_ONCE):
        statement = insert(usage).values([asdict(delta) for delta in ordered[start : start + _AT_ONCE]])
        more = {name: usage.c[name] + statement.excluded[name] for name in ("requests", "tokens", "cost_usd")}
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["subject", "day"], set_=more)
        )


async def totals(connection: AsyncConnection, subjects: Sequence[str], day: date) -> list[UsageTotal]:
    """What each subject has used, in the order asked; nothing used is a total too."""
    query = (
        select(
            usage.c.subject,
            *(
                func.sum(usage.c[name]).filter(usage.c.day == day)
                for name in ("requests", "tokens", "cost_usd")
            ),
            func.sum(usage.c.cost_usd),
        )
        .where(
            is_one_of(usage.c.subject, subjects),
            usage.c.day.between(day.replace(day=1), day),
        )
        .group_by(usage.c.subject)
    )
    found = {row[0]: _total(row) for row in await connection.execute(query)}
    return [found.get(each) or UsageTotal(each, 0, 0, Decimal(0), Decimal(0)) for each in subjects]


def _total(row: Any) -> UsageTotal:
    subject, requests, tokens, day_cost, month_cost = row
    return UsageTotal(subject, int(requests or 0), int(tokens or 0), day_cost or Decimal(0), month_cost)
