"""Usage is counted once, for whom it should be, by however many gateways."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from storage import usage
from storage.database import Database
from storage.ids import new_id
from storage.interactions import Copied, copy_batch
from storage.usage import UsageDelta, UsageTotal

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)
DAY = NOON.date()


def _row(**values: Any) -> dict[str, Any]:
    return {
        "id": new_id("int"),
        "at": NOON.isoformat(),
        "kind": "live",
        "use_case": "story",
        "key_id": "app",
        "status": "ok",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_usd": "0.000000150001",
        **values,
    }


async def _totals(db: Database, *subjects: str, day: date = DAY) -> list[UsageTotal]:
    async with db.connection() as connection:
        return await usage.totals(connection, subjects, day)


async def test_a_row_counts_for_its_key_and_its_use_case(db: Database) -> None:
    copied = await copy_batch(db, [_row(), _row(prompt_tokens=None, completion_tokens=None, cost_usd=None)])
    cost = Decimal("0.000000150001")
    assert copied == Copied(
        fresh=2,
        usage=[UsageDelta("key:app", 2, 15, cost, DAY), UsageDelta("use_case:story", 2, 15, cost, DAY)],
    )
    assert await _totals(db, "use_case:story", "key:app", "key:other") == [
        UsageTotal("use_case:story", 2, 15, cost, cost),
        UsageTotal("key:app", 2, 15, cost, cost),
        UsageTotal("key:other", 0, 0, Decimal(0), Decimal(0)),
    ]


async def test_whom_a_row_counts_for_depends_on_its_kind(db: Database) -> None:
    expected: dict[str, set[str]] = {
        "live": {"key:app", "use_case:story"},
        "evaluation": {"key:app"},
        "routed": {"key:app"},
        "shadow": {"shadow:story"},
    }
    for kind, subjects in expected.items():
        assert {each.subject for each in (await copy_batch(db, [_row(kind=kind)])).usage} == subjects
    anonymous = await copy_batch(db, [_row(key_id=None)])
    assert {each.subject for each in anonymous.usage} == {"use_case:story"}
    assert await copy_batch(db, [_row(status="rejected")]) == Copied(1, [])
    assert (await copy_batch(db, [_row(status="error")])).usage


async def test_a_batch_that_comes_twice_counts_once(db: Database) -> None:
    batch = [_row() for _ in range(3)]
    await copy_batch(db, batch[:2])
    again = await copy_batch(db, batch)
    assert (again.fresh, [each.requests for each in again.usage]) == (1, [1, 1])
    assert await copy_batch(db, batch) == Copied(0, [])
    assert (await _totals(db, "key:app"))[0].day_requests == 3


async def test_days_are_those_of_utc_and_months_end(db: Database) -> None:
    moments = [
        "2026-02-28T23:59:59+00:00",
        "2026-03-01T00:30:00+02:00",  # still February in UTC
        "2026-03-01T00:00:00+00:00",
        "2026-03-14T23:00:00-02:00",  # the 15th in UTC
        "2026-03-16T00:00:00+00:00",  # after the day that is asked for
    ]
    await copy_batch(db, [_row(at=each, cost_usd="1") for each in moments])
    (total,) = await _totals(db, "key:app")
    assert (total.day_requests, total.day_cost_usd, total.month_cost_usd) == (1, Decimal(1), Decimal(2))
    (total,) = await _totals(db, "key:app", day=date(2026, 2, 28))
    assert (total.day_requests, total.month_cost_usd) == (2, Decimal(2))


async def test_gateways_that_ship_at_once_lose_nothing_and_do_not_block_one_another(db: Database) -> None:
    drawn = random.Random(1)
    subjects = [(f"k{key}", f"u{use_case}") for key in range(5) for use_case in range(4)]

    async def gateway() -> None:
        for _ in range(6):
            chosen = drawn.sample(subjects, len(subjects))
            rows = [_row(key_id=key, use_case=use_case, cost_usd="0.1") for key, use_case in chosen]
            # Incidents take the lock of the feed: another order of locks would end in a deadlock.
            rows[0]["findings"] = [{"category": "weapons"}] if drawn.random() < 0.5 else []
            await copy_batch(
                db, rows, [{"id": new_id("fb"), "at": NOON, "interaction_id": "x", "name": "n", "value": 1}]
            )

    async with asyncio.timeout(30):
        await asyncio.gather(*(gateway() for _ in range(4)))
    for total in await _totals(db, *(f"key:k{key}" for key in range(5))):
        assert (total.day_requests, total.day_cost_usd) == (4 * 6 * 4, Decimal("9.6"))
    for total in await _totals(db, *(f"use_case:u{use_case}" for use_case in range(4))):
        assert total.day_tokens == 4 * 6 * 5 * 15


async def test_what_a_batch_adds_goes_with_it_when_it_fails(db: Database) -> None:
    broken = {"id": new_id("fb"), "at": NOON, "interaction_id": "x", "name": None, "value": 1}
    with pytest.raises(IntegrityError):
        await copy_batch(db, [_row()], [broken])
    assert (await _totals(db, "key:app"))[0].day_requests == 0


async def test_more_subjects_than_a_statement_takes(db: Database) -> None:
    copied = await copy_batch(
        db, [_row(key_id=f"k{number}", use_case=f"u{number}") for number in range(1100)]
    )
    assert len(copied.usage) == 2200
    totals = await _totals(db, *(each.subject for each in copied.usage))
    assert {each.day_requests for each in totals} == {1}


async def test_feedback_that_comes_twice_is_one(db: Database) -> None:
    said = {"id": "fb_1", "at": NOON, "interaction_id": "x", "name": "n", "value": 1, "label": "good"}
    await copy_batch(db, [], [said])
    await copy_batch(db, [], [{**said, "label": "bad"}, said])
    async with db.connection() as connection:
        rows = (await connection.exec_driver_sql("select label from feedback")).scalars().all()
    assert list(rows) == ["good"]
