"""Reads what a worker's journal wrote: whole lines as records, in batches that stop nobody for long.

Knows the frame of a line and not what is in it: that is the database's to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.journal import FEEDBACK, INTERACTION

_BATCH_BYTES = 1024 * 1024
_STARTS = tuple((kind, b'{"%s":' % kind.encode()) for kind in (INTERACTION, FEEDBACK))


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records, in order: JSON objects that nobody has looked into."""

    interactions: list[bytes]
    feedback: list[bytes]
    torn: int  #: lines that a crash or a full disk left incomplete

    @property
    def rows(self) -> int:
        """How many records there are."""
        return len(self.interactions) + len(self.feedback)

    def singles(self) -> Iterator[Batch]:
        """Each record alone."""
        for record in self.interactions:
            yield Batch([record], [], 0)
        for record in self.feedback:
            yield Batch([], [record], 0)


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


def batches(lines: Sequence[bytes], rows: int) -> Iterator[Sequence[bytes]]:
    """Slices of at most so many lines and, but for single ones that are larger, so many bytes."""
    start = size = 0
    for place, line in enumerate(lines):
        if place > start and (place - start >= rows or size + len(line) > _BATCH_BYTES):
            yield lines[start:place]
            start, size = place, 0
        size += len(line)
    if start < len(lines):
        yield lines[start:]
