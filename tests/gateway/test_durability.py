"""What the gateway survives: its own death, the database's, a full disk, a switch under open streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

from storage import identities
from storage.database import Database, DatabaseUnavailable
from tests.gateway.conftest import USE_CASE, Fleet, Running, config_for, lab, serving, until
from tests.gateway.fake_upstream import FakeUpstream

ROOT = Path(__file__).parents[2]
BODY: Any = {"model": USE_CASE, "messages": [{"role": "user", "content": "tell me of the sea"}]}
NOWHERE = "postgresql://nobody@127.0.0.1:9/none"

_START = """
import json, sys, pathlib
from gateway.process import serve
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
    (tmp_path / "last-good-routes.json").write_text('{"version": 1, "routes": []}')
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
    assert "meta_agent_journal_refused 0" in (await gateway.http.get("/metrics")).text


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
