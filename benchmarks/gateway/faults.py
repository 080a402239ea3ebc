"""Routes that flip and a database that goes away, both at full load: nothing may fail, no row may be lost."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.gateway import fleet
from benchmarks.gateway.load import Load, Target, read
from benchmarks.gateway.participants import Gateway
from benchmarks.gateway.report import Report
from benchmarks.gateway.stage import Stage

_FLIP_SECONDS = 0.2
_AROUND_SECONDS = 3.0  # of load before the database goes, and after it is back

_ROWS = "select count(*), count(*) filter (where status = 'ok') from interactions where use_case = 'bench'"
_REVISIONS = "select count(distinct route_revision), count(distinct release_id) from interactions"
_RELEASES = "select min(id), max(id) from releases where use_case = 'bench'"


class Running:
    """Plain requests and streams at full load, for so many seconds; ended with the block at the latest."""

    def __init__(self, stage: Stage, gateway: Gateway, seconds: float) -> None:
        targets = (Target(gateway.port, stream) for stream in (False, True))
        self._commands = [stage.generator.command(target, seconds) for target in targets]
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Running:
        for command in self._commands:
            self._processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def loads(self) -> list[Load]:
        """What they saw, when they are through."""
        return [read(process.communicate()[0]) for process in self._processes]


def flip_routes(stage: Stage, gateway: Gateway, seconds: float, report: Report) -> None:
    """Stable and candidate change places five times a second."""
    rows_before = _settled_rows(stage, gateway)
    with Running(stage, gateway, seconds) as running:
        flips = asyncio.run(_flip(stage.postgres.url, seconds))
        loads = running.loads()
    revisions, releases = stage.postgres.ask(_REVISIONS)
    rows = _settled_rows(stage, gateway) - rows_before
    row = {"flips": flips, "revisions that answered": revisions, **_counts(loads, rows)}
    title = f"Routes flipped every {_FLIP_SECONDS * 1000:.0f} ms at full load for {seconds:.0f} s"
    report.section("flip", title, [row], _verdict(loads, rows))
    assert releases >= 2


async def _flip(url: str, seconds: float) -> int:
    import psycopg

    from storage.database import Database

    with psycopg.connect(url) as connection:
        found = connection.execute(_RELEASES.encode()).fetchone()
    assert found
    database, flips, until = Database(url), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        stable, candidate = (found[0], found[1]) if flips % 2 else (found[1], found[0])
        async with database.transaction() as connection:
            await fleet.set_route(connection, "bench", stable, candidate)
        flips += 1
        await asyncio.sleep(_FLIP_SECONDS)
    await database.close()
    return flips


def take_database_away(stage: Stage, gateway: Gateway, seconds: float, report: Report) -> None:
    """PostgreSQL is killed, and started again after so many seconds."""
    title = f"PostgreSQL gone for {seconds:.0f} s at full load"
    if not stage.postgres.is_ours:
        report.section("outage", title, [], ["skipped: the database that was given is not ours to stop"])
        return
    rows_before = _settled_rows(stage, gateway)
    with Running(stage, gateway, seconds + 2 * _AROUND_SECONDS) as running:
        time.sleep(_AROUND_SECONDS)
        stage.postgres.kill()
        time.sleep(seconds)
        stage.postgres.start()
        loads = running.loads()
    began = time.monotonic()
    rows = _settled_rows(stage, gateway) - rows_before
    row = {**_counts(loads, rows), "s until all were stored": time.monotonic() - began}
    report.section("outage", title, [row], _verdict(loads, rows))


def _settled_rows(stage: Stage, gateway: Gateway) -> int:
    gateway.settle()
    everything, good = stage.postgres.ask(_ROWS)
    if everything != good:
        print(f"{everything - good} rows are not of good answers")
    return everything


def _counts(loads: Iterable[Load], rows: int) -> dict[str, Any]:
    plain, streams = loads
    return {
        "plain": plain.good,
        "streams": streams.good,
        "failed": sum(plain.failed.values()) + sum(streams.failed.values()),
        "rows": rows,
    }


def _verdict(loads: Iterable[Load], rows: int) -> list[str]:
    seen = list(loads)
    difference = rows - sum(load.good for load in seen)
    failures = ", ".join(f"{count} {how}" for load in seen for how, count in load.failed.items()) or "none"
    lost, added = max(0, -difference), max(0, difference)
    return [f"Failed: {failures}. Rows lost: {lost}, too many: {added}."]
