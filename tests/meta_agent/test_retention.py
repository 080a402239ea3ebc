"""What has been kept long enough goes, once, counted, and however often workers are stopped."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from meta_agent import privacy
from storage import audit, use_cases
from storage.clock import now
from storage.database import Database, try_session_lock
from storage.ids import new_id
from storage.interactions import copy_batch
from storage.vocabulary import Risk


async def _use_case(db: Database, name: str, serving: dict[str, Any]) -> None:
    async with db.transaction() as connection:
        await use_cases.declare(connection, name=name, risk=Risk.LOW, serving=serving)


async def _log(db: Database, use_case: str, days: float, count: int = 1) -> None:
    at = now() - timedelta(days=days)
    rows: list[dict[str, Any]] = [
        {"id": new_id("int"), "at": at, "kind": "live", "use_case": use_case, "status": "ok"}
        for _ in range(count)
    ]
    await copy_batch(db, rows, [])


async def _left(db: Database, use_case: str) -> int:
    async with db.connection() as connection:
        query = text("select count(*) from interactions where use_case = :name")
        return int((await connection.execute(query, {"name": use_case})).scalar_one())


async def _counted(db: Database) -> list[tuple[str, int]]:
    async with db.connection() as connection:
        rows = await audit.list_rows(connection, event="retention.expired")
    return [(each.subject, json.loads(each.data)["interactions"]) for each in rows]


async def _expire(db: Database) -> dict[str, int]:
    return await privacy.expire_once(db, asyncio.Event())


@pytest.fixture
async def story(db: Database) -> str:
    await _use_case(db, "story", {"retention_days": 30})
    return "story"


async def test_only_what_is_old_where_somebody_said_so(db: Database, story: str) -> None:
    await _use_case(db, "forever", {})
    for name in (story, "forever"):
        await _log(db, name, days=31, count=3)
        await _log(db, name, days=29)
    assert await _expire(db) == {story: 3}
    assert (await _left(db, story), await _left(db, "forever")) == (1, 4)
    assert await _counted(db) == [(story, 3)]
    assert await _expire(db) == {story: 0}
    assert len(await _counted(db)) == 1, "nothing removed, nothing to tell"


async def test_many_go_in_batches_and_are_one_row_of_the_audit(
    db: Database, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "_BATCH", 10)
    monkeypatch.setattr(privacy, "_PAUSE_SECONDS", 0.001)
    await _log(db, story, days=31, count=35)
    assert await _expire(db) == {story: 35}
    assert await _counted(db) == [(story, 35)]


async def test_a_worker_that_is_stopped_leaves_its_count_to_the_next(
    db: Database, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "_BATCH", 10)
    monkeypatch.setattr(privacy, "_PAUSE_SECONDS", 60)
    await _log(db, story, days=31, count=25)
    stop = asyncio.Event()
    running = asyncio.create_task(privacy.expire_once(db, stop))
    async with asyncio.timeout(10):
        while await _left(db, story) == 25:
            await asyncio.sleep(0.01)
    stop.set()
    assert await running == {story: 10}
    assert await _counted(db) == []
    monkeypatch.setattr(privacy, "_PAUSE_SECONDS", 0.001)
    assert await _expire(db) == {story: 15}
    assert await _counted(db) == [(story, 25)]


async def test_while_one_worker_is_at_it_another_is_not(db: Database, story: str) -> None:
    await _log(db, story, days=31)
    async with try_session_lock(db, "retention") as mine:
        assert mine
        assert await _expire(db) == {}
    assert await _expire(db) == {story: 1}


async def test_several_workers_count_each_row_once(db: Database, story: str) -> None:
    await _log(db, story, days=31, count=20)
    await asyncio.gather(*(_expire(db) for _ in range(4)))
    assert await _counted(db) == [(story, 20)]


async def test_a_worker_looks_again_and_again(db: Database, story: str) -> None:
    stop = asyncio.Event()
    watching = asyncio.create_task(privacy.watch(db, 0.05, stop))
    for _ in range(2):
        await _log(db, story, days=31)
        async with asyncio.timeout(10):
            while await _left(db, story):
                await asyncio.sleep(0.01)
    stop.set()
    await asyncio.wait_for(watching, 5)
