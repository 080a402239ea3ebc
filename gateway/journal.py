"""The journal on disk: a finished interaction survives the death of this process from here on.

Lines of JSON in numbered segments, written with one system call each, so that a killed process loses
nothing that was finished. A segment is closed after some time, rows or bytes; the sidecar stores and
removes it. When the disk refuses, lines wait in memory, are counted, and readiness says so. Knows no
database and no sidecar.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

_log = logging.getLogger(__name__)

_MEMORY_BYTES = 64 * 1024 * 1024  #: of lines that wait in memory while the disk refuses; older ones are lost
_SEGMENT_BYTES = 8 * 1024 * 1024  #: after which a segment is closed: the sidecar reads one at a time
_PIECE_BYTES = 1024 * 1024  #: of unwritten lines that are handed over at once
INTERACTION = "interaction"
FEEDBACK = "feedback"


class SpoolInUseError(Exception):
    """Another process writes to this directory."""


def segment_path(directory: Path, number: int) -> Path:
    """Where a segment lies."""
    return directory / f"{number:012d}.jsonl"


def segment_numbers(directory: Path) -> list[int]:
    """The segments in a directory, oldest first."""
    names = (entry.name for entry in os.scandir(directory))
    return sorted(int(name[:12]) for name in names if name.endswith(".jsonl") and name[:-6].isdecimal())


class Journal:
    """The segments of one worker process; its directory belongs to it alone.

    Numbers only grow, over restarts too, and each start leaves one out: the sidecar of a worker that died
    may still empty the directory, up to one segment after the last of which it was told, and must not
    meet a segment of this worker there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flush_rows: int = 500,
        on_closed: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._directory = directory
        self._flush_rows = flush_rows
        self._on_closed = on_closed
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock_directory(directory)
        self.closed_up_to = max([_last_number(self._lock), *segment_numbers(directory)]) + 1
        self._number = self.closed_up_to
        with contextlib.suppress(OSError):  # the disk is full: readiness will say so
            self._note_number(self._number)
        self._fd: int | None = None
        self._size = 0
        self._in_memory: deque[bytes] = deque()
        self._handed_over: dict[int, list[bytes]] = {}
        self._pieces = 0
        self._memory_size = 0  #: of both
        self.open_rows = 0  #: written to the open segment
        self.failures = 0  #: lines that the disk refused, since the start
        self.lost = 0  #: lines that found no place in memory either
        self.failing: str | None = None  #: why the last write failed; None: the disk is fine

    def record(self, kind: str, row: dict[str, Any]) -> None:
        """Write one record now. Never raises for the disk's sake: the client's answer goes out anyway."""
        line = _line(kind, row)
        try:
            self._write(line)
        except OSError as error:
            self._keep_in_memory(line, error)
            return
        self.failing = None
        if self.open_rows >= self._flush_rows or self._size > _SEGMENT_BYTES:
            self._close_segment()

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._fd = self._open_segment()
        written = os.write(self._fd, line)
        if written != len(line):
            # A full disk takes half a line; the next line must not be glued to it.
            os.ftruncate(self._fd, self._size)
            raise OSError("the disk is full")
        self._size += written
        self.open_rows += 1

    def _open_segment(self) -> int:
        number = self._number + 1
        self._note_number(number)
        path = segment_path(self._directory, number)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = number
        self._size = self.open_rows = 0
        return descriptor

    def _note_number(self, number: int) -> None:
        os.pwrite(self._lock, b"%012d\n" % number, 0)

    def _close_segment(self) -> None:
        if self._fd is None:
            return
        descriptor, self._fd, self.open_rows = self._fd, None, 0
        try:
            os.close(descriptor)
        except OSError as error:  # a disk across the network may say so only now
            _log.error("journal: segment %d may not be whole: %s", self._number, error)
        self.closed_up_to = self._number
        self._on_closed(self._number)

    def rotate_due(self) -> None:
        """Time has passed: close what was begun, so that it is shipped. Called each ``flush_seconds``."""
        self._write_memory()
        self._close_segment()

    # -- while the disk refuses

    def _keep_in_memory(self, line: bytes, error: OSError) -> None:
        if self.failing is None:
            _log.error(
                "journal: cannot write to %s (%s); interactions wait in memory", self._directory, error
            )
        self.failing = str(error)
        self.failures += 1
        self._in_memory.append(line)
        self._memory_size += len(line)
        while self._memory_size > _MEMORY_BYTES and self._in_memory:
            self._memory_size -= len(self._in_memory.popleft())
            self.lost += 1

    def _write_memory(self) -> None:
        while self._in_memory:
            try:
                self._write(self._in_memory[0])
            except OSError:
                return
            self.failing = None
            self._memory_size -= len(self._in_memory.popleft())

    @property
    def unwritten(self) -> int:
        """Lines that are nowhere but in memory."""
        return len(self._in_memory) + sum(map(len, self._handed_over.values()))

    @property
    def handed_over(self) -> int:
        """Pieces of unwritten lines that somebody has and that nobody has stored yet."""
        return len(self._handed_over)

    def hand_over(self) -> tuple[int, list[bytes]] | None:
        """The oldest unwritten lines, for another way than the disk, with a number for ``took``."""
        if not self._in_memory:
            return None
        piece = [self._in_memory.popleft()]
        size = len(piece[0])
        while self._in_memory and size + len(self._in_memory[0]) <= _PIECE_BYTES:
            piece.append(self._in_memory.popleft())
            size += len(piece[-1])
        self._pieces += 1
        self._handed_over[self._pieces] = piece
        return self._pieces, piece

    def took(self, number: int) -> None:
        """A piece that was handed over is safe elsewhere."""
        self._memory_size -= sum(map(len, self._handed_over.pop(number, ())))

    def close(self) -> None:
        """Write what can still be written; ``hand_over`` and ``took`` go on until ``release``.

        Lines that were handed over are written too: a record that arrives twice is stored once.
        """
        for number in sorted(self._handed_over, reverse=True):
            self._in_memory.extendleft(reversed(self._handed_over.pop(number)))
        self._write_memory()
        self._close_segment()

    def release(self) -> None:
        """Free the directory for another worker."""
        if self.unwritten:
            _log.error("journal: %d records are lost, neither disk nor database takes them", self.unwritten)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _line(kind: str, row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps({kind: row}, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n"
    except TypeError:  # half a character, or a number beyond 64 bits: not worth a lost record
        document = json.dumps(row, default=str, separators=(",", ":"))
        return b'{"%s":%s}\n' % (kind.encode(), document.encode())


def _lock_directory(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        text = f"{directory} is in use by another gateway; give each gateway a spool_dir of its own"
        raise SpoolInUseError(text) from None
    return lock


def _last_number(lock: int) -> int:
    """The number of the last segment that was ever opened here; its place is the lock file."""
    number = os.pread(lock, 12, 0)
    return int(number) if number.isdigit() else 0
