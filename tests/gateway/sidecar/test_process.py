"""The sidecar as a process: it may be killed, may hang, and may outlive its worker for a moment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import gateway.backoffice
import gateway.sidecar_link
from gateway.journal import INTERACTION
from gateway.sidecar.messages import Totals
from gateway.sidecar_link import SidecarProcess
from tests.gateway.sidecar.conftest import World, config_for, gauge, model_of, row, until, working

ROOT = Path(__file__).parents[3]

#: A worker that writes records as fast as it can, says which, and is killed.
_WORKER = """
import asyncio, os, pathlib, sys
import uvloop
from gateway.backoffice import BackOffice
from gateway.journal import INTERACTION
from gateway.settings import GatewayConfig
from gateway.sidecar_link import SidecarProcess
from storage.clock import now
from storage.ids import new_id

async def main():
    spool, url, rows, seconds = sys.argv[1:]
    config = GatewayConfig(gateway_id="gw", spool_dir=pathlib.Path(spool), providers={}, database_url=url,
                           flush_seconds=float(seconds), flush_rows=20)
    office = BackOffice(config, SidecarProcess())
    await office.start()
    for number in range(int(rows)):
        record = {"id": new_id("int"), "at": now(), "kind": "live", "use_case": "story-teller",
                  "status": "ok",
                  "stream": False, "usage_estimated": False, "findings": []}
        office.journal.record(INTERACTION, record)
        os.write(1, record["id"].encode() + b"\\n")
        await asyncio.sleep(0.001)
    print("done", flush=True)
    await asyncio.sleep(60)

uvloop.run(main())
"""


def test_the_worker_loads_no_database_driver() -> None:
    program = (
        "import sys, gateway.backoffice, gateway.sidecar_link, gateway.journal, gateway.route_table;"
        "print([name for name in ('sqlalchemy', 'psycopg', 'opentelemetry') if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.strip() == "[]"


async def test_a_sidecar_that_is_killed_while_it_ships_loses_and_doubles_nothing(
    world: World, tmp_path: Path
) -> None:
    await world.route("first")
    link = SidecarProcess()
    told: list[Totals] = []
    async with working(config_for(tmp_path, world.db.url, flush_rows=25), link) as office:
        office.on_totals = told.append
        office.watch(["key:app"])
        sent = []
        for _ in range(3):
            await until(lambda: office.readiness()["sidecar_failing"] is False)
            before = len(await world.ids())
            for _ in range(500):
                sent.append(row(cost_usd="1"))
                office.journal.record(INTERACTION, sent[-1])

            async def it_has_begun(before: int = before) -> bool:
                return len(await world.ids()) > before

            await until(it_has_begun)
            pid = link.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            version = await world.route(f"after-{pid}")
            await until(lambda pid=pid: link.pid not in (None, pid))
            await until(lambda pid=pid: model_of(office) == f"after-{pid}")
            assert office.table.snapshot is not None
            assert office.table.snapshot.version == version

        async def all_stored() -> bool:
            return len(await world.ids()) >= len(sent)

        await until(all_stored)
        assert Counter(await world.ids()) == Counter(each["id"] for each in sent)
        await until(lambda: not list(tmp_path.glob("*.jsonl")))
        await until(lambda: told[-1].totals[0].day_requests == len(sent))
        assert told[-1].totals[0].own_requests <= len(sent)
        assert gauge(office, "sidecar_starts") == 4


async def test_what_the_disk_refused_survives_the_sidecar(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = SidecarProcess()
    async with working(config_for(tmp_path, world.db.url), link) as office:
        await until(lambda: not office.readiness()["sidecar_failing"])
        assert link.pid is not None
        os.kill(link.pid, signal.SIGSTOP)
        monkeypatch.setattr(office.journal, "_write", _full_disk)
        sent = row()
        office.journal.record(INTERACTION, sent)
        await until(lambda: office.journal.handed_over)
        os.kill(link.pid, signal.SIGKILL)

        async def stored() -> bool:
            return await world.ids() == [sent["id"]]

        await until(stored)
        await until(lambda: office.journal.unwritten == 0)


def _full_disk(line: bytes) -> None:
    raise OSError("the disk is full")


async def test_a_sidecar_that_hangs_is_replaced(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.sidecar_link, "_SILENT_SECONDS", 6.0)
    link = SidecarProcess()
    async with working(config_for(tmp_path, world.db.url), link) as office:
        await until(lambda: not office.readiness()["sidecar_failing"])
        pid = link.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        sent = row()
        office.journal.record(INTERACTION, sent)
        await until(lambda: link.pid not in (None, pid), 40)

        async def stored() -> bool:
            return await world.ids() == [sent["id"]]

        await until(stored)


async def test_signals_that_mean_the_worker_do_not_end_it(world: World, tmp_path: Path) -> None:
    link = SidecarProcess()
    async with working(config_for(tmp_path, world.db.url), link) as office:
        await until(lambda: not office.readiness()["sidecar_failing"])
        pid = link.pid
        assert pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        await world.route("after")
        await until(lambda: model_of(office) == "after")
        assert (link.pid, gauge(office, "sidecar_starts")) == (pid, 1)


@pytest.mark.parametrize("rows", [5, 300])
async def test_a_sidecar_ships_what_a_killed_worker_left(world: World, tmp_path: Path, rows: int) -> None:
    worker = await _worker(tmp_path, world, rows=rows, flush_seconds=600.0)
    said = []
    while (line := await _line(worker)) != "done":
        said.append(line)
    worker.kill()
    await worker.wait()

    async def all_stored() -> bool:
        return await world.ids() == sorted(said)

    await until(all_stored)
    await until(lambda: not list(tmp_path.glob("*.jsonl")))


async def test_workers_that_are_killed_one_after_the_other_lose_and_double_nothing(
    world: World, tmp_path: Path
) -> None:
    said: list[str] = []
    for round_number in range(4):
        worker = await _worker(tmp_path, world, rows=100_000)
        said += [await _line(worker) for _ in range(150 + 37 * round_number)]
        worker.kill()  # the next one starts while the sidecar of this one still ships
        rest, _ = await worker.communicate()
        said += rest.decode().split()

    async def all_stored() -> bool:
        return set(said) <= set(await world.ids())

    async with working(config_for(tmp_path, world.db.url), SidecarProcess()):
        await until(all_stored)
        await until(lambda: not list(tmp_path.glob("*.jsonl")))
    stored = await world.ids()
    assert len(stored) == len(set(stored))
    assert len(set(stored) - set(said)) <= 4, "at most the one that was written when it was killed"


async def _worker(
    spool: Path, world: World, rows: int, flush_seconds: float = 0.02
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WORKER,
        str(spool),
        world.db.url,
        str(rows),
        str(flush_seconds),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )


async def _line(worker: asyncio.subprocess.Process) -> str:
    assert worker.stdout is not None
    async with asyncio.timeout(30):
        line = await worker.stdout.readline()
    assert line, "it ended by itself"
    return line.decode().strip()


async def test_a_process_that_cannot_start_is_tried_again_and_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = gateway.sidecar_link._COMMAND
    monkeypatch.setattr(gateway.sidecar_link, "_COMMAND", (sys.executable, "-c", "print('hello')"))
    monkeypatch.setattr(gateway.backoffice, "_FIRST_ROUTES_SECONDS", 1.0)
    await world.route("first")
    async with working(config_for(tmp_path, world.db.url), SidecarProcess()) as office:
        assert office.readiness()["sidecar_failing"] is True
        office.journal.record(INTERACTION, row())
        await until(lambda: gauge(office, "journal_segments") == 1)
        assert "nobody understands" in caplog.text
        monkeypatch.setattr(gateway.sidecar_link, "_COMMAND", command)
        await until(lambda: model_of(office) == "first", 30)
        assert office.readiness()["sidecar_failing"] is False


async def test_the_address_of_the_database_shows_in_no_command_line(world: World, tmp_path: Path) -> None:
    link = SidecarProcess()
    async with working(config_for(tmp_path, world.db.url), link):
        await until(lambda: link.pid)
        command = Path(f"/proc/{link.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{link.pid}/environ").read_bytes()
    assert b"gateway.sidecar" in command
    assert world.db.url.encode() not in command + environment
