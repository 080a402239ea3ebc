"""What the gateway survives: its own death, the database's, a full disk, a switch under open streams."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest
from sqlalchemy import make_url, text

import gateway.journal
import gateway.log_shipper
import gateway.route_table
from gateway.journal import INTERACTION, Journal, SpoolInUseError, read_lines
from gateway.log_shipper import LogShipper, _batches
from storage import identities
from storage.database import Database, DatabaseUnavailable
from tests.gateway.conftest import USE_CASE, Fleet, Running, config_for, lab, serving, until
from tests.gateway.fake_upstream import FakeUpstream

ROOT = Path(__file__).parents[2]
BODY: Any = {"model": USE_CASE, "messages": [{"role": "user", "content": "tell me of the sea"}]}
NOWHERE = "postgresql://nobody@127.0.0.1:9/none"

_START = """
import json, sys, pathlib
from gateway.app import serve
from gateway.settings import GatewayConfig, ProviderConfig
given = json.loads(sys.argv[1])
provider = ProviderConfig(name="lab", kind="openai_compatible", base_url=given.pop("upstream"))
spool = pathlib.Path(given.pop("spool"))
serve(GatewayConfig(gateway_id="gw-test", spool_dir=spool, providers={"lab": provider}, **given))
"""


@contextlib.asynccontextmanager
async def process(
    spool: Path, upstream: str, url: str, token: str
) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """A gateway in a process of its own, ready to serve."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {"spool": str(spool), "upstream": upstream, "database_url": url, "port": port}
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", _START, json.dumps(given), cwd=ROOT)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as http:

        async def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return (await http.get("/healthz/ready")).status_code == 200
            assert running.returncode is None
            return False

        try:
            await until(ready, 20)
            yield running, http
        finally:
            if running.returncode is None:
                running.kill()
            await running.wait()


async def test_a_killed_gateway_loses_and_doubles_nothing(
    fleet: Fleet, upstream: FakeUpstream, tmp_path: Path
) -> None:
    token = await fleet.key()
    await fleet.route(await fleet.release("echo"))
    answered: list[str] = []

    async def call_until_dead(http: httpx.AsyncClient) -> None:
        with contextlib.suppress(httpx.TransportError):
            while True:
                response = await http.post("/v1/chat/completions", json=BODY)
                answered.append(response.json()["id"].removeprefix("chatcmpl-"))

    for round_number in range(2):
        wanted = len(answered) + 150
        async with process(tmp_path, upstream.base_url, fleet.db.url, token) as (running, http):
            callers = [asyncio.ensure_future(call_until_dead(http)) for _ in range(4)]

            async def enough(wanted: int = wanted) -> bool:
                return len(answered) >= wanted

            await until(enough)
            running.send_signal(signal.SIGKILL)
            await asyncio.gather(*callers)
            await running.wait()
        if round_number == 0:
            leftovers = sorted(tmp_path.glob("*.jsonl"))
            with (leftovers[-1] if leftovers else tmp_path / "000000009999.jsonl").open("ab") as torn:
                torn.write(b'{"interaction": {"id": "int_to')
    async with process(tmp_path, upstream.base_url, fleet.db.url, token):

        async def all_stored() -> bool:
            return set(answered) <= {row["id"] for row in await fleet.rows()}

        await until(all_stored)

        async def spool_empty() -> bool:
            return not list(tmp_path.glob("*.jsonl"))

        await until(spool_empty)
    ids = [row["id"] for row in await fleet.rows()]
    assert len(ids) == len(set(ids))
    assert len(ids) - len(answered) <= 2 * 4, "at most what was in flight at each kill"


async def test_a_stopped_gateway_finishes_and_ships(
    fleet: Fleet, upstream: FakeUpstream, tmp_path: Path
) -> None:
    token = await fleet.key()
    await fleet.route(await fleet.release("sleep:0.3"))
    async with process(tmp_path, upstream.base_url, fleet.db.url, token) as (running, http):
        call = asyncio.ensure_future(http.post("/v1/chat/completions", json=BODY))

        async def asked() -> bool:
            return bool(upstream.requests)

        await until(asked)
        running.terminate()
        assert (await call).status_code == 200
        await running.wait()
    assert [row["status"] for row in await fleet.rows()] == ["ok"]
    assert not list(tmp_path.glob("*.jsonl"))


async def test_serves_from_the_last_good_routes_while_the_database_is_away(
    fleet: Fleet, upstream: FakeUpstream, tmp_path: Path
) -> None:
    token = await fleet.key()
    version = await fleet.route(await fleet.release("echo"))
    config = config_for(tmp_path, {"lab": lab(upstream.base_url)})
    async with serving(config, fleet.db, token) as running:
        await running.serves(version)
    last_good = tmp_path / "last-good-routes.json"
    assert last_good.stat().st_mode & 0o777 == 0o600
    away = Database(NOWHERE)
    async with serving(config, away, token) as running:
        assert (await running.http.get("/healthz/ready")).status_code == 200
        responses = [await running.post({**BODY, "stream": streamed}) for streamed in (True, False)]
        assert [response.status_code for response in responses] == [200, 200]

        async def noticed() -> bool:
            return bool((await running.http.get("/healthz/ready")).json()["database_failing"])

        await until(noticed)
    await away.close()
    assert await fleet.rows() == []
    async with serving(config, fleet.db, token):

        async def replayed() -> bool:
            return len(await fleet.rows()) == 2

        await until(replayed)


async def test_without_any_routes_it_is_alive_and_not_ready(upstream: FakeUpstream, tmp_path: Path) -> None:
    away = Database(NOWHERE)
    config = config_for(tmp_path, {"lab": lab(upstream.base_url)})
    async with serving(config, away, "ma_live_a_b") as running:
        assert (await running.http.get("/healthz/live")).status_code == 200
        assert (await running.http.get("/healthz/ready")).status_code == 503
        response = await running.post(BODY)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    await away.close()


async def test_a_broken_last_good_file_is_no_snapshot(upstream: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "last-good-routes.json").write_text('{"version": 1, "routes": {}}')
    away = Database(NOWHERE)
    async with serving(config_for(tmp_path, {}), away, "ma_live_a_b") as running:
        assert (await running.http.get("/healthz/ready")).status_code == 503
    await away.close()


async def test_a_switch_drops_no_open_stream(gateway: Running, fleet: Fleet, upstream: FakeUpstream) -> None:
    await gateway.serves(await fleet.route(await fleet.release("gated")))

    async def read() -> tuple[str, str]:
        text = finish = ""
        stream = await gateway.client().chat.completions.create(**BODY, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        return text, finish

    readers = [asyncio.ensure_future(read()) for _ in range(8)]

    async def all_open() -> bool:
        return len(upstream.requests) == 8

    await until(all_open)
    await gateway.serves(await fleet.route(await fleet.release("say:new")))
    assert "new" in (await gateway.post(BODY)).text
    upstream.gate.set()
    assert await asyncio.gather(*readers) == [("tell me of the sea ", "stop")] * 8
    rows = await until(lambda: _count(fleet, 9))
    assert sorted(row["route_revision"] for row in rows) == [2] * 8 + [3]


async def _count(fleet: Fleet, count: int) -> list[dict[str, Any]]:
    rows = await fleet.rows()
    return rows if len(rows) == count else []


async def test_routes_are_acknowledged_and_revoked_keys_refused(gateway: Running, fleet: Fleet) -> None:
    from storage.routes import lagging_gateways

    version = await fleet.route(await fleet.release("say:new"))

    async def acknowledged() -> bool:
        async with fleet.db.connection() as connection:
            return await lagging_gateways(connection, version) == []

    await until(acknowledged)
    async with fleet.db.transaction() as connection:
        await identities.revoke_key(connection, "app")

    async def refused() -> bool:
        return (await gateway.post(BODY)).status_code == 401

    await until(refused)


def test_two_gateways_cannot_share_a_spool(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(SpoolInUseError, match="spool_dir of its own"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_full_disk_leaves_no_torn_line_and_keeps_the_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    row = {"id": "int_1", "text": "x" * 100}
    journal.record(INTERACTION, row)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        journal.record(INTERACTION, row)
        journal.record(INTERACTION, row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.failures == 2
    assert journal.failing
    journal.record(INTERACTION, row)
    assert journal.failing is None
    journal.rotate()
    written = read_lines(journal.closed[0].read_bytes().splitlines())
    assert (written.rows, written.torn) == (2, 0)
    assert read_lines(journal.take_memory()).rows == 2
    journal.close()


async def test_a_row_that_the_database_refuses_stops_nobody(gateway: Running, fleet: Fleet) -> None:
    await gateway.post(BODY)
    good = await fleet.one_row()
    journal = gateway.app._journal
    journal.record(INTERACTION, {**good, "id": "int_bad", "at": "no date"})
    journal.record(INTERACTION, {**good, "id": "int_good"})
    await fleet.one_row("id = 'int_good'")
    refused = (journal._directory / "refused.ndjson").read_bytes()
    assert orjson.loads(refused)["id"] == "int_bad"


async def test_trouble_of_the_database_itself_sets_no_row_aside(gateway: Running, fleet: Fleet) -> None:
    shipper = gateway.app._shipper
    await _execute(fleet, "alter table interactions rename to away")
    await gateway.post(BODY)
    attempts = 0
    attempt = shipper._ship_once

    async def counted() -> bool:
        nonlocal attempts
        attempts += 1
        return await attempt()

    shipper._ship_once = counted  # type: ignore[method-assign]  # counts, and does all that it did

    async def tried_often() -> bool:
        return attempts >= 5

    await until(tried_often)
    assert shipper.failing == "UndefinedTable (42P01)"
    await _execute(fleet, "alter table away rename to interactions")
    assert (await fleet.one_row())["status"] == "ok"
    assert (shipper.refused, shipper.shipped) == (0, 1)


async def _execute(fleet: Fleet, statement: str) -> None:
    async with fleet.db.transaction() as connection:
        await connection.execute(text(statement))


async def test_a_refused_row_shows_in_no_log(
    gateway: Running, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.app._journal.record(
        INTERACTION, {"id": "int_bad", "request": {"a": "the prompt"}, "at": "the prompt"}
    )

    async def refused() -> bool:
        return gateway.app._shipper.refused == 1

    await until(refused)
    assert "set aside" in caplog.text
    assert "the prompt" not in caplog.text
    assert (gateway.app._journal._directory / "refused.ndjson").stat().st_mode & 0o777 == 0o600


async def test_a_segment_that_was_taken_away_stops_nobody(gateway: Running, fleet: Fleet) -> None:
    journal = gateway.app._journal
    journal._closed.append(journal._directory / "000000000000.jsonl")
    await gateway.post(BODY)
    await fleet.one_row()
    assert journal.closed == ()


async def test_rows_in_memory_wait_for_the_database_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.journal, "_MEMORY_BYTES", 60)
    journal = Journal(tmp_path)
    monkeypatch.setattr(journal, "_write", _full_disk)
    for number in range(4):
        journal.record(INTERACTION, {"id": number})
    assert journal.lost == 2, "each line is 24 bytes long"
    taken = journal.take_memory()
    journal.record(INTERACTION, {"id": 4})
    journal.put_back(taken)
    assert [line[-4:] for line in journal.take_memory()] == [b":3}}", b":4}}"]
    assert (journal.lost, journal.take_memory()) == (3, [])
    journal.close()


def _full_disk(line: bytes) -> None:
    raise OSError("full")


def test_segments_and_batches_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.journal, "_SEGMENT_BYTES", 1000)
    journal = Journal(tmp_path)
    for number in range(100):
        journal.record(INTERACTION, {"id": number, "text": "x" * 100})
    journal.rotate()
    assert all(segment.stat().st_size < 1200 for segment in journal.closed)
    lines = [line for segment in journal.closed for line in segment.read_bytes().splitlines()]
    assert [orjson.loads(line)[INTERACTION]["id"] for line in lines] == list(range(100))
    journal.close()
    monkeypatch.setattr(gateway.log_shipper, "_BATCH_BYTES", 1000)
    sizes = [len(batch) for batch in _batches([*lines, b"x" * 5000, b"y"], 5)]
    assert sizes == [5] * 20 + [1, 1]
    monkeypatch.setattr(gateway.log_shipper, "_BATCH_BYTES", 500)
    assert {len(batch) for batch in _batches(lines, 500)} <= {3, 4, 1}
    assert list(_batches([], 5)) == []


def test_lines_that_are_not_whole_are_no_rows() -> None:
    lines = [b"", b"5", b'{"interaction":{"id":1}}', b'{"interaction":{"id":2}', b'{"other":{}}', b"\x00"]
    batch = read_lines(lines)
    assert (batch.interactions, batch.torn) == ([b'{"id":1}'], 5)


async def test_the_database_may_go_and_come_back_under_load(gateway: Running, fleet: Fleet) -> None:
    answered: list[str] = []

    async def call(seconds: float) -> None:
        until_then = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until_then:
            response = await gateway.post(BODY)
            answered.append(response.headers["x-request-id"])

    async def cut_connections() -> None:
        for _ in range(8):
            await asyncio.sleep(0.1)
            async with await psycopg.AsyncConnection.connect(
                fleet.db.conninfo, autocommit=True
            ) as connection:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )

    await asyncio.gather(cut_connections(), *(call(1.0) for _ in range(4)))

    async def all_stored() -> bool:
        try:
            return sorted(row["id"] for row in await fleet.rows()) == sorted(answered)
        except DatabaseUnavailable:
            return False

    await until(all_stored, 20)
    assert gateway.app._shipper.refused == 0


class _FreezingProxy:
    """Before the database: carries bytes until it is frozen, then only those of connections made later."""

    def __init__(self, url: str) -> None:
        self._to = make_url(url)
        self._open: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield self._to.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        finally:
            server.close()
            self.freeze()
            for writer in self._writers:
                writer.close()

    def freeze(self) -> None:
        for task in self._open:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder = self._to.query.get("host")
        if folder:
            path = f"{folder}/.s.PGSQL.{self._to.port or 5432}"
            back, there = await asyncio.open_unix_connection(path)
        else:
            back, there = await asyncio.open_connection(self._to.host, self._to.port)
        self._writers += [writer, there]
        self._open += [asyncio.ensure_future(_carry(*pair)) for pair in ((reader, there), (back, writer))]


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_connections_to_the_database_that_hang_are_given_up(
    fleet: Fleet, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.route_table, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(gateway.log_shipper, "_STORE_SECONDS", 0.5)
    token = await fleet.key()
    version = await fleet.route(await fleet.release("echo"))
    proxy = _FreezingProxy(fleet.db.url)
    config = config_for(tmp_path, {"lab": lab(upstream.base_url)}, route_poll_seconds=0.1)
    async with proxy.running() as url:
        database = Database(url)
        async with serving(config, database, token) as running:
            await running.serves(version)
            proxy.freeze()
            version = await fleet.route(await fleet.release("say:new"))

            async def applied() -> bool:
                return running.app._table.snapshot.version >= version  # type: ignore[union-attr]  # it has one

            await until(applied, 40)
            assert "new" in (await running.post(BODY)).text
            await until(lambda: _count(fleet, 1), 40)
        await database.close()


async def test_shipping_twice_stores_once(fleet: Fleet, upstream: FakeUpstream, tmp_path: Path) -> None:
    token = await fleet.key()
    version = await fleet.route(await fleet.release("echo"))
    config = config_for(tmp_path / "one", {"lab": lab(upstream.base_url)})
    async with serving(dataclasses.replace(config, flush_seconds=0.3), fleet.db, token) as running:
        await running.serves(version)
        await running.post(BODY)
        (segment,) = (tmp_path / "one").glob("*.jsonl")
        kept = segment.read_bytes()
        await fleet.one_row()
    journal = Journal(tmp_path / "two")
    for _ in range(2):
        journal.record(INTERACTION, orjson.loads(kept)[INTERACTION])
        shipper = LogShipper(journal, fleet.db, seconds=0.01, rows=10)
        await shipper.finish(5)
    journal.close()
    assert len(await fleet.rows()) == 1


def test_the_data_plane_loads_nothing_of_the_control_plane() -> None:
    forbidden = (
        "meta_agent",
        "tools",
        "pipelines",
        "langgraph",
        "langchain_core",
        "torch",
        "litellm",
        "fastapi",
    )
    program = f"import sys, gateway.app; print([name for name in {forbidden!r} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.strip() == "[]"
