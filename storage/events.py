"""The live feed: an append-only table that pages tail by id, with a wake-up by NOTIFY."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import lock_in_transaction, notify
from storage.rows import columns_for, load
from storage.tables.governance import events

#: The lock of the audit's chain, which the feed shares: two locks would be taken in two orders.
CHAIN = "audit-chain"
#: The NOTIFY channel of new events.
CHANNEL = "events"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``kind`` is dotted, such as ``rollout.step``."""

    id: int
    at: datetime
    kind: str
    subject: str
    data: dict[str, Any]


async def publish(connection: AsyncConnection, *, kind: str, subject: str, data: Mapping[str, Any]) -> None:
    """Add an event; listeners wake when the transaction commits.

    One writer at a time, so that ids are committed in their order: whoever tails by id would otherwise
    pass over an event whose transaction took longer than a later one's.
    """
    await lock_in_transaction(connection, CHAIN)
    await connection.execute(
        insert(events).values(at=clock.now(), kind=kind, subject=subject, data=dict(data))
    )
    await notify(connection, CHANNEL)


async def after(connection: AsyncConnection, last_id: int, limit: int = 200) -> list[Event]:
    """Events after an id, oldest first."""
    query = (
        select(*columns_for(Event, events)).where(events.c.id > last_id).order_by(events.c.id).limit(limit)
    )
    return [load(Event, row) for row in await connection.execute(query)]


async def recent(connection: AsyncConnection, limit: int = 50) -> list[Event]:
    """The newest events, newest first."""
    query = select(*columns_for(Event, events)).order_by(events.c.id.desc()).limit(limit)
    return [load(Event, row) for row in await connection.execute(query)]


async def last_id(connection: AsyncConnection) -> int:
    """The id of the newest event, 0 if there is none."""
    return int((await connection.execute(select(func.coalesce(func.max(events.c.id), 0)))).scalar_one())
