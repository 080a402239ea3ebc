"""What is kept of people goes: all of it when one of them asks, the rest when its time is over.

A name comes in here and goes no further: neither the audit nor a log repeats it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import asdict
from datetime import timedelta

from meta_agent.access import Identity
from meta_agent.reading.models import ErasureRead
from meta_agent.secrets import pseudonym_key
from meta_agent.services import Services
from storage import audit, flags, privacy, use_cases
from storage.clock import now
from storage.database import Connection, Database, DatabaseUnavailable, SessionLocks, session_locks
from storage.ids import new_id
from storage.privacy import Erased
from storage.pseudonyms import pseudonym
from storage.servings import read_serving
from storage.vocabulary import Role

log = logging.getLogger(__name__)

_RETENTION_LOCK = "retention"
#: So many interactions go in one transaction, and so long others have the database for themselves then.
_BATCH, _PAUSE_SECONDS = 2000, 0.2
#: One request erases for so long; whoever asked asks again for the rest.
_ERASING_SECONDS = 15.0


async def erase(services: Services, identity: Identity, user: str) -> ErasureRead:
    """Remove what a user said and was told; ``complete`` says whether that was all."""
    identity.require(Role.ADMIN)
    key = await asyncio.to_thread(pseudonym_key, services.settings.home)
    erasure_id, user_id = new_id("erasure"), pseudonym(key, user)
    # Before the first row goes: should this process die, the record says that somebody began.
    await _record(services.database, identity, "privacy.erasing", erasure_id, {})
    erased, until, complete = Erased(), time.monotonic() + _ERASING_SECONDS, False
    while not complete and time.monotonic() < until:
        async with services.database.transaction() as connection:
            more = await privacy.erase_some(connection, user_id=user_id, raw=user)
        complete = more is None
        erased += more or Erased()
    counts = asdict(erased)
    await _record(services.database, identity, "privacy.erased", erasure_id, {**counts, "complete": complete})
    return ErasureRead(id=erasure_id, complete=complete, **counts)


async def _record(
    database: Database, identity: Identity, event: str, subject: str, data: dict[str, object]
) -> None:
    async with database.transaction() as connection:
        await audit.append(connection, actor=identity.actor, event=event, subject=subject, data=data)


async def watch(database: Database, every_seconds: float, stop: asyncio.Event) -> None:
    """Remove what has been kept long enough, until told to stop. Several workers may: one does it."""
    while not stop.is_set():
        try:
            await expire_once(database, stop)
        except DatabaseUnavailable as error:
            log.warning("could not look for what has been kept long enough: %s", error)
        except Exception:
            log.exception("what has been kept long enough could not be removed, trying again later")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_seconds)


async def expire_once(database: Database, stop: asyncio.Event) -> dict[str, int]:
    """How many interactions went, by use case; nothing while another worker is at it."""
    async with session_locks(database) as locks:
        if not await locks.try_lock(_RETENTION_LOCK):
            return {}
        gone: dict[str, int] = {}
        for name, days in await _retentions(database):
            gone[name] = await _expire(database, locks, stop, name, days)
    return gone


async def _retentions(database: Database) -> list[tuple[str, int]]:
    async with database.connection() as connection:
        found = await use_cases.list_all(connection)
    retentions = [(each.name, read_serving(each.name, each.serving).retention_days) for each in found]
    return [(name, days) for name, days in retentions if days]


async def _expire(database: Database, locks: SessionLocks, stop: asyncio.Event, name: str, days: int) -> int:
    """One use case, batch by batch."""
    before, total, complete = now() - timedelta(days=days), 0, False
    # Without its connection the lock is gone, and another worker may have begun.
    while not complete and not stop.is_set() and await locks.alive():
        async with database.transaction() as connection:
            gone = await privacy.expire(connection, use_case=name, before=before, limit=_BATCH)
            complete = gone < _BATCH
            await _count(connection, name, days, gone, complete)
        total += gone
        if not complete:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PAUSE_SECONDS)
    return total


async def _count(connection: Connection, name: str, days: int, gone: int, complete: bool) -> None:
    """Keep count with each batch, and put the whole on record once: no row goes that nobody counted."""
    flag = f"retention:{name}"
    before = int(await flags.get(connection, flag, 0))
    counted = before + gone
    left = 0 if complete else counted
    if left != before:
        await flags.put(connection, flag, left, "worker")
    if counted and complete:
        data = {"use_case": name, "interactions": counted, "retention_days": days}
        await audit.append(connection, actor="worker", event="retention.expired", subject=name, data=data)
