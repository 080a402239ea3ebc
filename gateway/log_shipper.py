"""Moves what the journal holds into the database, in batches, off the callers' time.

At least once on the wire, exactly once in the table: a segment is removed only after its rows are
committed, and rows that are known already are skipped there. While the database is away segments
stay. A row that the database refuses for what it holds is set aside, so that it stops nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.journal import Batch, Journal, read_lines
from storage.database import Database, DatabaseUnavailable
from storage.interactions import copy_batch

_log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 40  #: so that encoding a batch never stops the event loop for long
_LONGEST_PAUSE = 5.0
_ATTEMPTS = 3  #: of a batch, with the database up, before its rows are tried one by one


class LogShipper:
    """The task that empties the journal."""

    def __init__(self, journal: Journal, database: Database, *, seconds: float, rows: int) -> None:
        self._journal = journal
        self._database = database
        self._seconds = seconds
        self._rows = rows
        self._something = asyncio.Event()
        self._something.set()  # what an earlier process left is shipped at once
        self._plenty = asyncio.Event()
        self._attempts = 0
        self.shipped = 0
        self.torn = 0
        self.refused = 0
        self.failing: str | None = None  #: why the last attempt failed; None: all is well

    def notice(self) -> None:
        """A record was written."""
        self._something.set()
        if self._journal.open_rows >= self._rows:
            self._plenty.set()

    async def run(self) -> None:
        """Ship until cancelled."""
        pause = self._seconds
        while True:
            if await self._ship_once():
                pause = self._seconds
                await self._something.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        await self._plenty.wait()
            else:
                pause = min(pause * 2, _LONGEST_PAUSE)
                await asyncio.sleep(pause)

    async def finish(self, seconds: float) -> None:
        """Ship what is left, for so long at most; what stays is shipped after the next start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ship_once()

    async def _ship_once(self) -> bool:
        self._something.clear()
        self._plenty.clear()
        try:
            await self._ship_all()
        except DatabaseUnavailable as error:
            self._note_failure(error)
            return False
        except Exception as error:
            _log.exception("shipping the journal failed")
            self._note_failure(error)
            return False
        if self.failing is not None:
            _log.warning("log shipper: the database takes interactions again")
        self.failing = None
        self._attempts = 0
        return True

    def _note_failure(self, error: Exception) -> None:
        if self.failing is None:
            _log.warning("log shipper: the database takes no interactions, they wait on disk: %s", error)
        self.failing = str(error) or type(error).__name__

    async def _ship_all(self) -> None:
        self._journal.rotate()
        for segment in self._journal.closed:
            await self._ship_segment(segment)
        lines = self._journal.take_memory()
        if lines:
            await self._ship_lines(lines)
            self._journal.drop_memory(len(lines))

    async def _ship_segment(self, segment: Path) -> None:
        lines = (await asyncio.to_thread(segment.read_bytes)).splitlines()
        torn = await self._ship_lines(lines)
        if torn:
            _log.warning("log shipper: %d incomplete lines in %s were skipped", torn, segment.name)
        self._journal.remove(segment)

    async def _ship_lines(self, lines: Sequence[bytes]) -> int:
        torn = 0
        for start in range(0, len(lines), _ROWS_AT_ONCE):
            batch = read_lines(list(lines[start : start + _ROWS_AT_ONCE]))
            torn += batch.torn
            if batch.rows:
                await self._store(batch)
        self.torn += torn
        return torn

    async def _store(self, batch: Batch) -> None:
        try:
            await copy_batch(self._database, batch.interactions, batch.feedback)
        except Exception:
            self._attempts += 1
            if self._attempts < _ATTEMPTS or not await self._database_answers():
                raise
            await self._store_one_by_one(batch)
        self.shipped += batch.rows
        self._attempts = 0

    async def _database_answers(self) -> bool:
        try:
            async with self._database.connection():
                return True
        except DatabaseUnavailable:
            return False

    async def _store_one_by_one(self, batch: Batch) -> None:
        singles: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
            *(([row], []) for row in batch.interactions),
            *(([], [row]) for row in batch.feedback),
        ]
        for interactions, feedback in singles:
            try:
                await copy_batch(self._database, interactions, feedback)
            except Exception as error:
                if not await self._database_answers():
                    raise
                self.refused += 1
                row = (interactions or feedback)[0]
                _log.error("log shipper: the database refuses %s; set aside: %s", row.get("id"), error)
                self._journal.set_aside(row)
