"""The chain holds, and shows where it was touched."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage import audit
from storage.database import Database


async def _append(db: Database, number: int) -> None:
    async with db.transaction() as connection:
        await audit.append(
            connection,
            actor="test",
            event="thing.done",
            subject=f"s{number}",
            data={"x": 1e-6 * number, "t": "ü\n"},
        )


async def test_concurrent_writers_make_one_chain(db: Database) -> None:
    await asyncio.gather(*(_append(db, number) for number in range(20)))
    async with db.connection() as connection:
        found = await audit.verify(connection)
    assert found.intact
    assert found.rows == 20


async def test_rows_cannot_be_changed_or_removed(db: Database) -> None:
    await _append(db, 1)
    for statement in ("update audit set actor = 'x'", "delete from audit", "truncate audit"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with db.transaction() as connection:
                await connection.execute(text(statement))


@pytest.mark.parametrize(
    "tampering",
    [
        "update audit set data = '{}' where sequence = 3",
        "update audit set actor = 'somebody' where sequence = 3",
        "update audit set at = at + interval '1 second' where sequence = 3",
        "delete from audit where sequence = 3",
        "update audit set hash = repeat('0', 64) where sequence = 3",
    ],
)
async def test_tampering_behind_the_rails_is_found(db: Database, tampering: str) -> None:
    for number in range(5):
        await _append(db, number)
    async with db.transaction() as connection:
        await connection.execute(text("alter table audit disable trigger all"))
        await connection.execute(text(tampering))
    async with db.connection() as connection:
        found = await audit.verify(connection)
    assert found.broken_at == 3
