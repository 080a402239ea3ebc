"""The audit: who did what, in rows that are chained by hash and written with the act itself.

Each row's hash covers its own content and the hash before it, so that a changed, removed or inserted
row breaks the chain from there on. Appending takes a transaction lock: the chain has one writer at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock, events
from storage.database import lock_in_transaction
from storage.digests import canonical
from storage.rows import columns_for, load
from storage.tables.governance import audit

#: What the first row is chained to.
GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One link of the chain."""

    sequence: int
    at: datetime
    actor: str
    event: str
    subject: str
    data: str
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a walk along the chain found."""

    rows: int
    broken_at: int | None  #: sequence of the first row that does not fit
    why: str | None

    @property
    def intact(self) -> bool:
        """Every row fits the one before."""
        return self.broken_at is None


def _hash(sequence: int, at: datetime, actor: str, event: str, subject: str, data: str, previous: str) -> str:
    content = canonical([sequence, at.isoformat(), actor, event, subject, data, previous])
    return hashlib.sha256(content.encode()).hexdigest()


async def append(
    connection: AsyncConnection, *, actor: str, event: str, subject: str, data: Mapping[str, Any]
) -> str:
    """Add a row to the chain within the caller's transaction; returns its hash.

    Also tells the live feed, so that whoever watches sees what the audit holds.
    """
    await lock_in_transaction(connection, events.CHAIN)
    last = (
        await connection.execute(
            select(audit.c.sequence, audit.c.hash).order_by(audit.c.sequence.desc()).limit(1)
        )
    ).first()
    sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
    at, body = clock.now(), canonical(dict(data))
    row_hash = _hash(sequence, at, actor, event, subject, body, previous)
    await connection.execute(
        insert(audit).values(
            sequence=sequence,
            at=at,
            actor=actor,
            event=event,
            subject=subject,
            data=body,
            previous_hash=previous,
            hash=row_hash,
        )
    )
    await events.publish(connection, kind=event, subject=subject, data={"actor": actor, **data})
    return row_hash


async def append_once(
    connection: AsyncConnection, *, actor: str, event: str, subject: str, data: Mapping[str, Any]
) -> bool:
    """The same, for what happens once to a subject: a step that runs again adds no second row."""
    await lock_in_transaction(connection, events.CHAIN)
    known = select(audit.c.sequence).where(audit.c.subject == subject, audit.c.event == event).limit(1)
    if (await connection.execute(known)).first() is not None:
        return False
    await append(connection, actor=actor, event=event, subject=subject, data=data)
    return True


async def verify(connection: AsyncConnection) -> Verification:
    """Walk the chain from its beginning and recompute every hash."""
    previous, expected = GENESIS, 1
    async with connection.stream(select(audit).order_by(audit.c.sequence)) as result:
        async for row in result:
            why = _fault(row, expected, previous)
            if why is not None:
                return Verification(expected - 1, expected, why)
            previous, expected = row.hash, expected + 1
    return Verification(expected - 1, None, None)


def _fault(row: Row[Any], expected: int, previous: str) -> str | None:
    if row.sequence != expected:
        return f"row {expected} is missing"
    if row.previous_hash != previous:
        return f"row {expected} does not continue the row before it"
    at = row.at.astimezone(UTC)
    if row.hash != _hash(row.sequence, at, row.actor, row.event, row.subject, row.data, row.previous_hash):
        return f"the content of row {expected} was changed"
    return None


async def list_rows(
    connection: AsyncConnection,
    *,
    subject: str | None = None,
    event: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[AuditRow]:
    """Rows, newest first, of one subject or event if asked; ``before`` is a sequence to page from."""
    query = select(*columns_for(AuditRow, audit)).order_by(audit.c.sequence.desc()).limit(limit)
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    if event is not None:
        query = query.where(audit.c.event == event)
    if before is not None:
        query = query.where(audit.c.sequence < before)
    return [load(AuditRow, row) for row in await connection.execute(query)]
