"""A budget that is spent becomes known, once for each day or month."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from meta_agent import budgets
from storage import identities, interactions, use_cases
from storage.clock import now
from storage.database import Database
from storage.ids import new_id
from storage.interactions import copy_batch
from storage.vocabulary import Risk


async def _spend(db: Database, dollars: str) -> None:
    row = {"id": new_id("int"), "at": now(), "kind": "live", "use_case": "story", "status": "ok"}
    await copy_batch(db, [{**row, "key_id": "app", "cost_usd": dollars}])


async def test_each_overrun_is_told_once_whoever_looks(db: Database) -> None:
    async with db.transaction() as connection:
        limits = {"usd_per_day": "1", "usd_per_month": "3", "over_budget": "alert"}
        await use_cases.declare(connection, name="story", risk=Risk.LOW, serving={"limits": limits})
        await use_cases.declare(connection, name="free", risk=Risk.LOW)
        await identities.ensure_key(
            connection, key_id="app", secret="s", name="app", scopes=["infer"], limits={"usd_per_day": "2"}
        )
    await _spend(db, "0.99")
    assert await budgets.tell_once(db) == []
    await _spend(db, "0.5")
    seen = await asyncio.gather(*(budgets.tell_once(db) for _ in range(3)))
    assert [(each.subject, each.period, each.then) for one in seen for each in one] == [
        ("use_case:story", "day", "alert")
    ]
    await _spend(db, "2")
    told = {(each.subject, each.period) for each in await budgets.tell_once(db)}
    assert told == {("use_case:story", "month"), ("key:app", "day")}
    assert await budgets.tell_once(db) == []
    async with db.connection() as connection:
        found = await interactions.list_incidents(connection)
    assert {each.category for each in found} == {"over_budget"}
    assert len(found) == 3
    month = next(each for each in found if each.details["period"] == "month")
    assert (month.use_case, Decimal(month.details["spent_usd"])) == ("story", Decimal("3.49"))
    assert "$3.49 of $3.00" in month.summary
