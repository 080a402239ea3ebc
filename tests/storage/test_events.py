"""Whoever tails the feed by id misses nothing."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from storage import events
from storage.database import Database


async def test_ids_are_committed_in_their_order(db: Database) -> None:
    async def publish(kind: str) -> None:
        async with db.transaction() as connection:
            await events.publish(connection, kind=kind, subject="x", data={})

    async with db.transaction() as slow:
        await events.publish(slow, kind="first", subject="x", data={})
        quick = asyncio.create_task(publish("second"))
        waiting = text("select exists (select from pg_locks where not granted)")
        async with asyncio.timeout(10), db.connection() as connection:
            while not (quick.done() or (await connection.execute(waiting)).scalar_one()):
                await asyncio.sleep(0.01)
        async with db.connection() as connection:
            assert await events.after(connection, 0) == [], "a reader would step over the first one"
    await quick
    async with db.connection() as connection:
        assert [each.kind for each in await events.after(connection, 0)] == ["first", "second"]
