"""The shipper on its own: what may happen to its directory."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import orjson
import pytest

import gateway.sidecar.shipper
from gateway.journal import INTERACTION, segment_numbers, segment_path
from gateway.sidecar.shipper import Shipper
from gateway.sidecar.usage import UsageBook
from storage.database import Database
from tests.gateway.sidecar.conftest import World, row


def _shipper(database: Database, directory: Path) -> Shipper:
    book = UsageBook(database, 1.0, lambda totals: None)
    return Shipper(
        database,
        directory,
        10,
        book,
        on_stored=lambda rows: None,
        on_took=lambda number: None,
        on_turn=lambda: None,
    )


def _write(directory: Path, number: int, *ids: str) -> None:
    lines = [orjson.dumps({INTERACTION: row(id=each)}, default=str) + b"\n" for each in ids]
    segment_path(directory, number).write_bytes(b"".join(lines))


async def test_a_segment_that_was_taken_away_stops_nobody(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        gateway.sidecar.shipper, "segment_numbers", lambda directory: [1, *segment_numbers(directory)]
    )
    _write(tmp_path, 2, "int_1")
    shipper = _shipper(world.db, tmp_path)
    shipper.closed(2)
    await shipper.finish(5)
    shipper.close()
    assert await world.ids() == ["int_1"]
    assert "removed by somebody else" in caplog.text
    assert segment_numbers(tmp_path) == []


async def test_one_process_at_a_time_ships(world: World, tmp_path: Path) -> None:
    _write(tmp_path, 2, "int_1")
    predecessor = os.open(tmp_path / "ship.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(predecessor, fcntl.LOCK_EX)
    shipper = _shipper(world.db, tmp_path)
    shipper.closed(2)
    await shipper.finish(0.2)
    assert await world.ids() == []
    shipping = asyncio.create_task(shipper.finish(10))
    await asyncio.sleep(0)
    os.close(predecessor)
    await shipping
    shipper.close()
    assert await world.ids() == ["int_1"]


async def test_a_segment_is_removed_only_after_all_of_it_is_stored(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"int_{number:02d}" for number in range(25)]
    _write(tmp_path, 2, *ids)
    copy = gateway.sidecar.shipper.copy_documents
    calls = 0

    async def copy_and_break(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        stored = await copy(*arguments)  # type: ignore[arg-type]  # passed on as they came
        if calls == 2:
            raise OSError("the connection broke after the commit, before its answer came")
        return stored

    monkeypatch.setattr(gateway.sidecar.shipper, "copy_documents", copy_and_break)
    shipper = _shipper(world.db, tmp_path)
    shipper.closed(2)
    await shipper.finish(5)
    assert shipper.failing is not None
    assert await world.ids() == ids[:20]
    assert segment_numbers(tmp_path) == [2]
    await shipper.finish(5)
    shipper.close()
    assert await world.ids() == ids
    assert (shipper.failing, shipper.refused, segment_numbers(tmp_path)) == (None, 0, [])
