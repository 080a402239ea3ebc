"""Moves what the worker's journal holds into the database, in batches.

At least once on the wire, exactly once in the table: a segment is removed only after its rows are
committed, and rows that are known already are skipped there. While the database is away segments
stay. A row that the database refuses for what it holds is set aside, so that it stops nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.journal import segment_numbers, segment_path
from gateway.sidecar.segments import Batch, batches, read_lines
from gateway.sidecar.trouble import warn_once
from gateway.sidecar.usage import UsageBook
from storage.database import Database
from storage.interactions import copy_documents, is_row_fault, words_of

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.25  #: after a failure, doubled up to the longest
_LONGEST_PAUSE = 5.0
_STORE_SECONDS = 30.0  #: after which a database that hangs counts as away
_LOCK_PAUSE = 0.05


class Shipper:
    """The task that empties the spool directory. Only one process at a time does so."""

    def __init__(
        self,
        database: Database,
        directory: Path,
        rows: int,
        book: UsageBook,
        *,
        on_stored: Callable[[Sequence[bytes]], None],
        on_took: Callable[[int], None],
        on_turn: Callable[[], None],
    ) -> None:
        self._database = database
        self._directory = directory
        self._rows = rows
        self._book = book
        self._on_stored = on_stored
        self._on_took = on_took
        self._on_turn = on_turn
        self._something = asyncio.Event()
        self._up_to = -1
        self._unwritten: dict[int, list[str]] = {}
        self._lock: int | None = None
        self.shipped = 0
        self.torn = 0
        self.refused = 0
        self.waiting = 0  #: closed segments that are not stored yet
        self.failing: str | None = None  #: why the last attempt failed; None: all is well

    # -- what the worker says

    def closed(self, up_to: int) -> None:
        """Segments up to that number are whole."""
        self._up_to = max(self._up_to, up_to)
        self._something.set()

    def take(self, number: int, lines: list[str]) -> None:
        """Records that the worker could write nowhere."""
        self._unwritten[number] = lines
        self._something.set()

    def worker_is_gone(self) -> None:
        """Nobody writes any more: the segment after the last closed one is whole, too, if it is there.

        Nothing beyond it is touched: the next worker may already be writing there.
        """
        if self._up_to >= 0:
            self._up_to += 1

    # -- life

    async def run(self) -> None:
        """Ship until cancelled."""
        await self._take_lock()
        pause = _FIRST_PAUSE
        while True:
            if await self._ship_once():
                pause = _FIRST_PAUSE
                await self._something.wait()
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def finish(self, seconds: float) -> None:
        """Ship what is left, for so long at most; what stays is shipped after the next start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._take_lock()
                await self._ship_once()

    def close(self) -> None:
        """Let another process ship."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _take_lock(self) -> None:
        """Wait for the sidecar of an earlier worker, which may still ship what that one left."""
        if self._lock is not None:
            return
        lock = os.open(self._directory / "ship.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(lock):  # noqa: ASYNC110  # another process tells us nothing
                await asyncio.sleep(_LOCK_PAUSE)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    # -- shipping

    async def _ship_once(self) -> bool:
        self._something.clear()
        try:
            await self._ship_all()
        except Exception as error:
            self._note_failure(error)
            return False
        if self.failing is not None:
            _log.warning("shipper: the database takes interactions again")
            self.failing = None
            self._on_turn()
        return True

    def _note_failure(self, error: Exception) -> None:
        known = self.failing
        consequence = "shipper: nothing can be stored, interactions wait on disk"
        self.failing = warn_once(_log, consequence, error, known)
        if self.failing != known:
            self._on_turn()

    async def _ship_all(self) -> None:
        numbers = [number for number in segment_numbers(self._directory) if number <= self._up_to]
        self.waiting = len(numbers)
        for number in numbers:
            await self._ship_segment(segment_path(self._directory, number))
            self.waiting -= 1
        for piece in sorted(self._unwritten):
            lines = self._unwritten[piece]
            await self._ship_lines([line.rstrip("\n").encode() for line in lines])
            del self._unwritten[piece]
            self._on_took(piece)

    async def _ship_segment(self, segment: Path) -> None:
        try:
            lines = (await asyncio.to_thread(segment.read_bytes)).splitlines()
        except FileNotFoundError:
            _log.error("shipper: %s was removed by somebody else, its interactions are lost", segment)
            return
        torn = await self._ship_lines(lines)
        if torn:
            _log.warning("shipper: %d incomplete lines in %s were skipped", torn, segment.name)
        os.unlink(segment)

    async def _ship_lines(self, lines: Sequence[bytes]) -> int:
        torn = 0
        for some in batches(lines, self._rows):
            batch = read_lines(some)
            torn += batch.torn
            if batch.rows:
                await self._store(batch)
        self.torn += torn
        return torn

    async def _store(self, batch: Batch) -> None:
        try:
            await self._copy(batch)
        except Exception as error:
            if not is_row_fault(error):
                raise
            await self._store_one_by_one(batch)

    async def _copy(self, batch: Batch) -> None:
        async with self._book.lock:
            async with asyncio.timeout(_STORE_SECONDS):
                copied = await copy_documents(self._database, batch.interactions, batch.feedback)
            self._book.add(copied.usage)
        self.shipped += batch.rows
        if copied.fresh:
            self._on_stored(batch.interactions)

    async def _store_one_by_one(self, batch: Batch) -> None:
        for single in batch.singles():
            try:
                await self._copy(single)
            except Exception as error:
                if not is_row_fault(error):
                    raise
                self.refused += 1
                _log.error("shipper: the database refuses a row, it is set aside: %s", words_of(error))
                self._set_aside((single.interactions or single.feedback)[0])

    def _set_aside(self, record: bytes) -> None:
        """Keep a record apart, for a person to look at."""
        path = self._directory / "refused.ndjson"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "ab") as file:
            file.write(record + b"\n")


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
