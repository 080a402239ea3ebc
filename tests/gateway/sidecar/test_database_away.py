"""The database goes, hangs and comes back; nothing is lost, doubled or stale for long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

import gateway.sidecar.routes
import gateway.sidecar.shipper
from gateway.journal import INTERACTION
from gateway.sidecar.in_process import InProcessSidecar
from storage.database import Database, DatabaseUnavailable
from tests.gateway.sidecar.conftest import (
    MakeLink,
    World,
    config_for,
    gauge,
    model_of,
    row,
    until,
    working,
)
from tests.gateway.sidecar.database_proxy import DatabaseProxy


async def test_the_database_may_go_and_come_back(world: World, make_link: MakeLink, tmp_path: Path) -> None:
    await world.route("first")
    proxy = DatabaseProxy(world.db.url)
    async with proxy.running() as url:
        database = Database(url)
        config = config_for(tmp_path, url, route_poll_seconds=0.1)
        async with working(config, make_link(database)) as office:
            sent = [row() for _ in range(50)]
            for each in sent[:10]:
                office.journal.record(INTERACTION, each)
            proxy.refuse()
            for each in sent[10:30]:
                office.journal.record(INTERACTION, each)
            await world.route("second")
            await until(lambda: office.readiness()["database_failing"])
            await until(lambda: office.readiness()["routes_failing"])
            assert model_of(office) == "first"
            await until(lambda: gauge(office, "journal_segments") >= 1)
            proxy.refusing = False
            for each in sent[30:]:
                office.journal.record(INTERACTION, each)
            await until(lambda: model_of(office) == "second")

            async def all_stored() -> bool:
                return await world.ids() == sorted(each["id"] for each in sent)

            await until(all_stored, 20)
            await until(lambda: not office.readiness()["database_failing"])
            assert not office.readiness()["routes_failing"]
            assert gauge(office, "journal_refused") == 0
        await database.close()


async def test_connections_may_be_cut_at_any_time(world: World, make_link: MakeLink, tmp_path: Path) -> None:
    await world.route("first")
    sent = [row() for _ in range(300)]
    config = config_for(tmp_path, world.db.url, flush_rows=10)
    async with working(config, make_link(world.db)) as office:

        async def record() -> None:
            for each in sent:
                office.journal.record(INTERACTION, each)
                await asyncio.sleep(0.003)

        async def cut() -> None:
            for _ in range(8):
                await asyncio.sleep(0.1)
                async with await psycopg.AsyncConnection.connect(
                    world.db.conninfo, autocommit=True
                ) as connection:
                    await connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where datname = current_database() and pid <> pg_backend_pid()"
                    )

        await asyncio.gather(record(), cut())

        async def all_stored() -> bool:
            try:
                return await world.ids() == sorted(each["id"] for each in sent)
            except DatabaseUnavailable:
                return False

        await until(all_stored, 20)
        assert gauge(office, "journal_refused") == 0


async def test_connections_that_hang_are_given_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.sidecar.routes, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(gateway.sidecar.shipper, "_STORE_SECONDS", 0.5)
    await world.route("first")
    proxy = DatabaseProxy(world.db.url)
    async with proxy.running() as url:
        database = Database(url)
        config = config_for(tmp_path, url, route_poll_seconds=0.1)
        async with working(config, InProcessSidecar(database)) as office:
            await until(lambda: model_of(office) == "first")
            proxy.freeze()
            await world.route("second")
            sent = row()
            office.journal.record(INTERACTION, sent)
            await until(lambda: model_of(office) == "second", 40)

            async def stored() -> bool:
                return await world.ids() == [sent["id"]]

            await until(stored, 40)
        await database.close()


async def test_a_refused_row_shows_in_no_log(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(config_for(tmp_path, world.db.url), InProcessSidecar(world.db)) as office:
        office.journal.record(
            INTERACTION, {"id": "int_bad", "request": {"a": "the prompt"}, "at": "the prompt"}
        )
        await until(lambda: gauge(office, "journal_refused") == 1)
    assert "set aside" in caplog.text
    assert "the prompt" not in caplog.text
