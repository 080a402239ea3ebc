"""The journal on its own, and how its segments are read."""

from __future__ import annotations

import resource
from pathlib import Path

import orjson
import pytest

import gateway.journal
import gateway.sidecar.segments
from gateway.journal import INTERACTION, Journal, SpoolInUseError, segment_numbers, segment_path
from gateway.sidecar.segments import batches, read_lines


def test_two_gateways_cannot_share_a_spool(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(SpoolInUseError, match="spool_dir of its own"):
        Journal(tmp_path)
    journal.release()
    Journal(tmp_path).release()


def test_segments_close_by_time_and_by_rows(tmp_path: Path) -> None:
    closed: list[int] = []
    journal = Journal(tmp_path, flush_rows=3, on_closed=closed.append)
    journal.rotate_due()
    assert closed == [], "nothing was written"
    for number in range(7):
        journal.record(INTERACTION, {"id": number})
    assert closed == [2, 3]
    assert journal.open_rows == 1
    journal.rotate_due()
    assert closed == [2, 3, 4]
    assert (journal.open_rows, journal.closed_up_to) == (0, 4)
    journal.record(INTERACTION, {"id": 7})
    journal.close()
    journal.release()
    assert closed == segment_numbers(tmp_path) == [2, 3, 4, 5]


def test_numbers_only_grow_and_leave_one_out_at_each_start(tmp_path: Path) -> None:
    for expected in (2, 4, 6):
        journal = Journal(tmp_path)
        assert journal.closed_up_to == expected - 1
        journal.record(INTERACTION, {"id": 1})
        journal.close()
        journal.release()
        assert segment_numbers(tmp_path) == [expected]
        segment_path(tmp_path, expected).unlink()
    segment_path(tmp_path, 40).touch()
    (tmp_path / "lock").write_text("what somebody wrote there")
    journal = Journal(tmp_path)
    assert journal.closed_up_to == 41
    journal.release()
    # A worker that wrote nothing took a number, too: its sidecar may still look for the one after it.
    journal = Journal(tmp_path)
    assert journal.closed_up_to == 42
    journal.release()


def test_a_full_disk_leaves_no_torn_line_and_keeps_the_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    row = {"id": "int_1", "text": "x" * 100}
    journal.record(INTERACTION, row)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        journal.record(INTERACTION, row)
        journal.record(INTERACTION, row)
        journal.rotate_due()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.failures == 2
    # The one that did not fit went to a segment of its own; then that was full as well.
    journal.record(INTERACTION, row)
    assert journal.failing is None
    journal.close()
    journal.release()
    lines = [line for path in sorted(tmp_path.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    written = read_lines(lines)
    assert (written.rows, written.torn) == (4, 0)


def test_rows_in_memory_are_bounded_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.journal, "_MEMORY_BYTES", 60)
    monkeypatch.setattr(gateway.journal, "_PIECE_BYTES", 30)
    journal = Journal(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(journal, "_write", _full_disk)
        for number in range(4):
            journal.record(INTERACTION, {"id": number})
        assert (journal.lost, journal.unwritten) == (2, 2), "each line is 25 bytes long"
        first = journal.hand_over()
        assert first == (1, [b'{"interaction":{"id":2}}\n'])
        journal.record(INTERACTION, {"id": 4})
        assert journal.lost == 3, "what was handed over takes its place until it is taken"
        journal.took(1)
        journal.record(INTERACTION, {"id": 5})
        assert (journal.lost, journal.unwritten) == (3, 2)
        assert journal.hand_over() == (2, [b'{"interaction":{"id":4}}\n'])
    journal.close()
    journal.release()
    assert journal.unwritten == 0
    (segment,) = tmp_path.glob("*.jsonl")
    assert [orjson.loads(line)[INTERACTION]["id"] for line in segment.read_bytes().splitlines()] == [4, 5]


def _full_disk(line: bytes) -> None:
    raise OSError("full")


def test_a_directory_that_refuses_new_files_costs_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(gateway.journal, "segment_path", lambda directory, number: directory / "no" / "where")
        for number in range(3):
            journal.record(INTERACTION, {"id": number})
            journal.rotate_due()
        assert (journal.failures, journal.unwritten) == (3, 3)
    journal.rotate_due()
    journal.release()
    assert segment_numbers(tmp_path) == [2]
    assert read_lines(segment_path(tmp_path, 2).read_bytes().splitlines()).rows == 3


@pytest.mark.parametrize("text", ["half a character \ud83d", 2**70, {"deep": ["\udc00"]}])
def test_a_record_that_is_hard_to_write_is_written(tmp_path: Path, text: object) -> None:
    journal = Journal(tmp_path)
    journal.record(INTERACTION, {"id": "int_1", "text": text})
    journal.close()
    journal.release()
    (segment,) = tmp_path.glob("*.jsonl")
    batch = read_lines(segment.read_bytes().splitlines())
    assert (batch.rows, batch.torn) == (1, 0)


def test_segments_and_batches_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.journal, "_SEGMENT_BYTES", 1000)
    journal = Journal(tmp_path)
    for number in range(100):
        journal.record(INTERACTION, {"id": number, "text": "x" * 100})
    journal.close()
    journal.release()
    segments = sorted(tmp_path.glob("*.jsonl"))
    assert len(segments) > 5
    assert all(segment.stat().st_size < 1200 for segment in segments)
    lines = [line for segment in segments for line in segment.read_bytes().splitlines()]
    assert [orjson.loads(line)[INTERACTION]["id"] for line in lines] == list(range(100))
    monkeypatch.setattr(gateway.sidecar.segments, "_BATCH_BYTES", 1000)
    sizes = [len(batch) for batch in batches([*lines, b"x" * 5000, b"y"], 5)]
    assert sizes == [5] * 20 + [1, 1]
    monkeypatch.setattr(gateway.sidecar.segments, "_BATCH_BYTES", 500)
    assert {len(batch) for batch in batches(lines, 500)} <= {3, 4, 1}
    assert list(batches([], 5)) == []


def test_lines_that_are_not_whole_are_no_rows() -> None:
    lines = [b"", b"5", b'{"interaction":{"id":1}}', b'{"interaction":{"id":2}', b'{"other":{}}', b"\x00"]
    batch = read_lines(lines)
    assert (batch.interactions, batch.torn) == ([b'{"id":1}'], 5)
