"""Moves what the journal holds into the database, in batches, off the callers' time.

At least once on the wire, exactly once in the table: a segment is removed only after its rows are
committed, and rows that are known already are skipped there. While the database is away segments
stay. A row that the database refuses for what it holds is set aside, so that it stops nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.journal import Batch, Journal, read_lines
from storage.database import Database, DatabaseUnavailable
from storage.interactions import copy_documents, is_row_fault, words_of

_log = logging.getLogger(__name__)

_BATCH_BYTES = 1024 * 1024  #: so that no batch stops the event loop for long
_LONGEST_PAUSE = 5.0
_STORE_SECONDS = 30.0  #: after which a database that hangs counts as away


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
        return True

    def _note_failure(self, error: Exception) -> None:
        if self.failing is None:
            _log.warning(
                "log shipper: the database takes no interactions, they wait on disk: %s", words_of(error)
            )
        self.failing = words_of(error)

    async def _ship_all(self) -> None:
        self._journal.rotate()
        for segment in self._journal.closed:
            await self._ship_segment(segment)
        lines = self._journal.take_memory()
        try:
            await self._ship_lines(lines)
        except BaseException:
            self._journal.put_back(lines)
            raise

    async def _ship_segment(self, segment: Path) -> None:
        try:
            lines = (await asyncio.to_thread(segment.read_bytes)).splitlines()
        except FileNotFoundError:
            _log.error("log shipper: %s was removed by somebody else, its interactions are lost", segment)
            lines = []
        torn = await self._ship_lines(lines)
        if torn:
            _log.warning("log shipper: %d incomplete lines in %s were skipped", torn, segment.name)
        self._journal.remove(segment)

    async def _ship_lines(self, lines: Sequence[bytes]) -> int:
        torn = 0
        for some in _batches(lines, self._rows):
            batch = read_lines(some)
            torn += batch.torn
            if batch.rows:
                await self._store(batch)
        self.torn += torn
        return torn

    async def _store(self, batch: Batch) -> None:
        try:
            await self._copy(batch.interactions, batch.feedback)
        except Exception as error:
            if not is_row_fault(error):
                raise
            await self._store_one_by_one(batch)
        self.shipped += batch.rows

    async def _copy(self, interactions: Sequence[bytes], feedback: Sequence[bytes]) -> None:
        async with asyncio.timeout(_STORE_SECONDS):
            await copy_documents(self._database, interactions, feedback)

    async def _store_one_by_one(self, batch: Batch) -> None:
        singles: list[tuple[list[bytes], list[bytes]]] = [
            *(([row], []) for row in batch.interactions),
            *(([], [row]) for row in batch.feedback),
        ]
        for interactions, feedback in singles:
            try:
                await self._copy(interactions, feedback)
            except Exception as error:
                if not is_row_fault(error):
                    raise
                self.refused += 1
                _log.error("log shipper: the database refuses a row, it is set aside: %s", words_of(error))
                self._journal.set_aside((interactions or feedback)[0])


def _batches(lines: Sequence[bytes], rows: int) -> Iterator[Sequence[bytes]]:
    """Slices of at most so many lines and, but for single ones that are larger, so many bytes."""
    start = size = 0
    for place, line in enumerate(lines):
        if place > start and (place - start >= rows or size + len(line) > _BATCH_BYTES):
            yield lines[start:place]
            start, size = place, 0
        size += len(line)
    if start < len(lines):
        yield lines[start:]
