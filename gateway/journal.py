"""The journal on disk: a finished interaction survives the death of this process from here on.

Lines of JSON in numbered segments, written with one system call each, so that a killed process loses
nothing that was finished. Segments are closed, shipped by ``gateway.log_shipper`` and removed. When
the disk refuses, lines wait in memory, are counted, and readiness says so. Knows no database.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_log = logging.getLogger(__name__)

_PATTERN = "*.jsonl"
_MEMORY_BYTES = 64 * 1024 * 1024  #: of lines that wait in memory while the disk refuses; older ones are lost
_SEGMENT_BYTES = 8 * 1024 * 1024  #: after which a segment is closed: the shipper reads one at a time
INTERACTION = "interaction"
FEEDBACK = "feedback"
#: How the lines of each kind begin. Only their frame is read here: their inside is PostgreSQL's to read.
_STARTS = tuple((kind, b'{"%s":' % kind.encode()) for kind in (INTERACTION, FEEDBACK))


class SpoolInUseError(Exception):
    """Another process writes to this directory."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What was read from segments, in order: JSON objects that nobody has looked into."""

    interactions: list[bytes]
    feedback: list[bytes]
    torn: int  #: lines that a crash or a full disk left incomplete

    @property
    def rows(self) -> int:
        """How many records there are."""
        return len(self.interactions) + len(self.feedback)


class Journal:
    """The segments of one gateway process; its directory belongs to it alone."""

    def __init__(self, directory: Path, on_record: Callable[[], None] = lambda: None) -> None:
        self._directory = directory
        self._on_record = on_record
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock_directory(directory)
        self._closed = sorted(directory.glob(_PATTERN))
        last = int(self._closed[-1].stem) if self._closed else 0
        self._number = last
        self._fd: int | None = None
        self._size = 0
        self._in_memory: deque[bytes] = deque()
        self._memory_size = 0
        self.open_rows = 0  #: written since the last rotation
        self.failures = 0  #: lines that the disk refused, since the start
        self.lost = 0  #: lines that found no place in memory either
        self.failing: str | None = None  #: why the last write failed; None: the disk is fine

    def record(self, kind: str, row: dict[str, Any]) -> None:
        """Write one record now. Never raises for the disk's sake: the client's answer goes out anyway."""
        line = orjson.dumps({kind: row}, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n"
        try:
            self._write(line)
        except OSError as error:
            self._keep_in_memory(line.removesuffix(b"\n"), error)
        else:
            self.failing = None
        self.open_rows += 1
        self._on_record()

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._fd = self._open_segment()
        written = os.write(self._fd, line)
        if written != len(line):
            # A full disk takes half a line; the next line must not be glued to it.
            os.ftruncate(self._fd, self._size)
            raise OSError("the disk is full")
        self._size += written
        if self._size > _SEGMENT_BYTES:
            self._close_segment()

    def _open_segment(self) -> int:
        self._number += 1
        self._size = 0
        return os.open(self._path(self._number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}.jsonl"

    def _keep_in_memory(self, line: bytes, error: OSError) -> None:
        if self.failing is None:
            _log.error(
                "journal: cannot write to %s (%s); interactions wait in memory", self._directory, error
            )
        self.failing = str(error)
        self.failures += 1
        self._in_memory.append(line)
        self._memory_size += len(line)
        self._bound_memory()

    def _bound_memory(self) -> None:
        while self._memory_size > _MEMORY_BYTES:
            self._memory_size -= len(self._in_memory.popleft())
            self.lost += 1

    # -- for the shipper

    def rotate(self) -> None:
        """Close the current segment, so that it can be shipped."""
        if self._fd is not None:
            self._close_segment()
        self.open_rows = 0

    def _close_segment(self) -> None:
        assert self._fd is not None
        os.close(self._fd)
        self._fd = None
        self._closed.append(self._path(self._number))

    @property
    def closed(self) -> tuple[Path, ...]:
        """Segments that wait to be shipped, oldest first."""
        return tuple(self._closed)

    def remove(self, segment: Path) -> None:
        """Forget a segment whose records are stored."""
        segment.unlink(missing_ok=True)
        self._closed.remove(segment)

    def set_aside(self, record: bytes) -> None:
        """Keep a record that the database refuses apart, for a person to look at."""
        path = self._directory / "refused.ndjson"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "ab") as file:
            file.write(record + b"\n")

    def take_memory(self) -> list[bytes]:
        """The lines that could not be written, to be shipped without the disk, or to be put back."""
        lines = list(self._in_memory)
        self._in_memory.clear()
        self._memory_size = 0
        return lines

    def put_back(self, lines: list[bytes]) -> None:
        """Lines that were taken and not shipped: they wait again, before those that came since."""
        self._in_memory.extendleft(reversed(lines))
        self._memory_size += sum(map(len, lines))
        self._bound_memory()

    def close(self) -> None:
        """Stop writing and free the directory."""
        self.rotate()
        os.close(self._lock)


def read_lines(lines: Iterable[bytes]) -> Batch:
    """The records of some lines; a line that is not whole is skipped and counted."""
    batch: dict[str, list[bytes]] = {INTERACTION: [], FEEDBACK: []}
    torn = 0
    for line in lines:
        for kind, start in _STARTS:
            if line.startswith(start) and line.endswith(b"}}"):
                batch[kind].append(line[len(start) : -1])
                break
        else:
            torn += 1
    return Batch(batch[INTERACTION], batch[FEEDBACK], torn)


def _lock_directory(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        text = f"{directory} is in use by another gateway; give each gateway a spool_dir of its own"
        raise SpoolInUseError(text) from None
    return lock
