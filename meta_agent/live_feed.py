"""The live feed for many readers: one LISTEN for the whole process, and a replay from the table for each.

Knows the events table and its channel; nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from storage import events
from storage.database import Database, DatabaseUnavailable
from storage.events import Event

log = logging.getLogger(__name__)

#: Ids are given before commit, so that a lower one may appear after a higher one: look back this far.
_LOOK_BACK = 64
_RETRY_SECONDS = 1.0


class LiveFeed:
    """Wakes every reader when something happened. Listens only while somebody reads."""

    def __init__(self, database: Database) -> None:
        """Nothing is opened before the first reader comes."""
        self._database = database
        self._readers: set[asyncio.Event] = set()
        self._listener: asyncio.Task[None] | None = None

    async def follow(
        self, last_id: int | None, heartbeat_seconds: float
    ) -> AsyncGenerator[Event | None, None]:
        """Events after an id (None: from now on), for ever; None is a heartbeat in a quiet time."""
        wake = self._join()
        try:
            position = await self._newest() if last_id is None else last_id
            floor, seen = position, set[int]()
            yield None
            while True:
                wake.clear()
                known = len(seen)
                for event in await self._after(max(floor, position - _LOOK_BACK)):
                    if event.id not in seen:
                        yield event
                        seen.add(event.id)
                        position = max(position, event.id)
                if len(seen) > known:  # a full page: there may be more
                    seen = {each for each in seen if each >= position - _LOOK_BACK}
                    continue
                try:
                    await asyncio.wait_for(wake.wait(), heartbeat_seconds)
                except TimeoutError:
                    yield None
        finally:
            self._leave(wake)

    def _join(self) -> asyncio.Event:
        wake = asyncio.Event()
        self._readers.add(wake)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        return wake

    def _leave(self, wake: asyncio.Event) -> None:
        self._readers.discard(wake)
        if not self._readers and self._listener is not None:
            self._listener.cancel()
            self._listener = None

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._database.listen(events.CHANNEL):
                    for reader in self._readers:
                        reader.set()
            except DatabaseUnavailable as error:
                log.warning("the live feed lost the database, trying again: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _newest(self) -> int:
        async with self._database.connection() as connection:
            return await events.last_id(connection)

    async def _after(self, last_id: int) -> list[Event]:
        async with self._database.connection() as connection:
            return await events.after(connection, last_id)
