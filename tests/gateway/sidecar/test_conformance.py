"""What a worker may rely on, whether its sidecar is a process or runs beside it in tests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.journal import FEEDBACK, INTERACTION
from gateway.sidecar.messages import Applied, Closed, Configure, FromSidecar, Replaced, SubjectTotal, Totals
from storage import identities, interactions, routes
from storage.clock import now
from storage.database import Database, notify
from storage.routing import RoutingSnapshot
from storage.vocabulary import Capture
from tests.gateway.sidecar.conftest import (
    USE_CASE,
    MakeLink,
    World,
    config_for,
    gauge,
    model_of,
    row,
    until,
    working,
)

NOWHERE = "postgresql://nobody@127.0.0.1:9/none"


# -- routes


async def test_a_start_has_the_newest_routes_and_a_switch_is_seen_at_once(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    await world.key()
    await world.route("first")
    # A poll that never comes: what is seen was heard.
    config = config_for(tmp_path, world.db.url, route_poll_seconds=600.0)
    async with working(config, make_link(world.db)) as office:
        assert model_of(office) == "first"
        assert office.table.snapshot is not None
        assert list(office.table.snapshot.keys) == ["app"]
        for number in range(3):
            version = await world.route(f"next-{number}")
            began = time.monotonic()
            await until(lambda number=number: model_of(office) == f"next-{number}")
            assert time.monotonic() - began < 1.0
            assert office.table.snapshot.version == version


async def test_two_gateways_both_see_a_switch_and_both_say_so(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    await world.route("first")
    configs = [
        config_for(tmp_path / name, world.db.url, gateway_id=name, route_poll_seconds=600.0)
        for name in ("gw-1", "gw-2")
    ]
    async with (
        working(configs[0], make_link(world.db)) as one,
        working(configs[1], make_link(world.db)) as two,
    ):
        version = await world.route("second")
        began = time.monotonic()
        await until(lambda: model_of(one) == model_of(two) == "second")
        assert time.monotonic() - began < 1.0

        async def nobody_lags() -> bool:
            return await world.served() == {"gw-1": version, "gw-2": version}

        await until(nobody_lags)
        sent = [row() for _ in range(40)]
        for number, each in enumerate(sent):
            (one, two)[number % 2].journal.record(INTERACTION, each)

        async def all_stored() -> bool:
            return await world.ids() == sorted(each["id"] for each in sent)

        await until(all_stored)


async def test_keys_and_rules_of_serving_come_and_go(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    await world.key()
    await world.route("first")
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:

        def snapshot() -> RoutingSnapshot:
            assert office.table.snapshot is not None
            return office.table.snapshot

        async with world.db.transaction() as connection:
            await identities.revoke_key(connection, "app")
        await until(lambda: not snapshot().keys)
        await world.key("another")
        await until(lambda: list(snapshot().keys) == ["another"])
        await world.execute("""update use_cases set serving = '{"capture": "metadata"}'""")
        async with world.db.transaction() as connection:
            await notify(connection, routes.CHANNEL, USE_CASE)

        def serving_is_known() -> bool:
            serving = snapshot().servings.get(USE_CASE)
            return serving is not None and serving.capture is Capture.METADATA

        await until(serving_is_known)
        assert model_of(office) == "first"


async def test_new_prices_are_read_once_they_are_announced(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    await world.route("first")
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        await world.execute("update deployments set price_input = 0.5")
        async with world.db.transaction() as connection:
            await notify(connection, routes.CHANNEL, routes.PRICES)

        def price() -> Decimal:
            assert office.table.snapshot is not None
            return office.table.snapshot.routes[USE_CASE].arms[0].deployment.price_input

        await until(lambda: price() == Decimal("0.5"))


async def test_a_version_is_acknowledged_only_once_the_worker_serves_by_it(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    version = await world.route("first")
    heard: list[FromSidecar] = []
    link = make_link(world.db)
    configure = Configure(
        database_url=world.db.url, spool_dir=str(tmp_path), gateway_id="slow", route_poll_seconds=0.05
    )
    await link.start(configure, heard.append)
    try:
        await until(lambda: any(isinstance(each, Replaced) for each in heard))
        refreshed = len(heard)
        newer = await world.route("second")
        await until(lambda: len(heard) > refreshed + 1)
        assert await world.served() == {}
        link.send(Applied(version))

        async def said() -> bool:
            return await world.served() == {"slow": version}

        await until(said)
        link.send(Applied(newer))
        await until(lambda: _serves(world, newer))
    finally:
        await link.close(5)


async def _serves(world: World, version: int) -> bool:
    return await world.served() == {"slow": version}


async def test_the_last_good_routes_are_kept_for_a_start_without_the_database(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    await world.key()
    await world.route("first")
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        await world.route("second")
        await until(lambda: model_of(office) == "second")
        good = office.table.snapshot
        assert good is not None
    file = tmp_path / "last-good-routes.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert RoutingSnapshot.decode(file.read_bytes()) == good
    assert [path.name for path in tmp_path.glob("*.new")] == []
    away = Database(NOWHERE)
    async with working(config_for(tmp_path, NOWHERE), make_link(away)) as office:
        assert office.table.snapshot == good
        assert office.table.failing is not None
        assert office.readiness()["routes_failing"] is True
        assert office.table.age_seconds is None
    await away.close()


@pytest.mark.parametrize("content", [None, "{", '{"version": "one"}'])
async def test_without_any_routes_there_is_no_snapshot(
    make_link: MakeLink, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "last-good-routes.json").write_text(content)
    away = Database(NOWHERE)
    began = time.monotonic()
    async with working(config_for(tmp_path, NOWHERE), make_link(away)) as office:
        assert office.table.snapshot is None
        assert time.monotonic() - began < 7, "it does not wait in vain"
        readiness = office.readiness()
        assert (readiness["routes_version"], readiness["routes_failing"]) == (None, True)
    await away.close()


# -- records


async def test_records_and_feedback_are_stored_and_their_segments_removed(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    config = config_for(tmp_path, world.db.url, flush_rows=7)
    async with working(config, make_link(world.db)) as office:
        sent = [
            row(response_text="a\u2028 \u0000 \ud83d\ude00 \U0001f600\n" + "x" * number)
            for number in range(40)
        ]
        for each in sent:
            office.journal.record(INTERACTION, each)
        office.journal.record(
            FEEDBACK,
            {"id": "fb_1", "at": now(), "interaction_id": sent[0]["id"], "name": "score", "value": 1},
        )
        await until(lambda: _stored(world, sent))
        await until(lambda: not list(tmp_path.glob("*.jsonl")))
        assert await world.ids("feedback") == ["fb_1"]
        await until(lambda: gauge(office, "journal_shipped") == 41)
        assert office.readiness()["journal_segments_waiting"] == 0


async def _stored(world: World, sent: list[dict[str, Any]]) -> bool:
    return await world.ids() == sorted(each["id"] for each in sent)


async def test_what_is_left_is_shipped_at_the_end(world: World, make_link: MakeLink, tmp_path: Path) -> None:
    config = config_for(tmp_path, world.db.url, flush_seconds=600.0)
    async with working(config, make_link(world.db)) as office:
        sent = [row() for _ in range(5)]
        for each in sent:
            office.journal.record(INTERACTION, each)
    assert await _stored(world, sent)
    assert not list(tmp_path.glob("*.jsonl"))


async def test_what_could_not_be_shipped_waits_for_the_next_start(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    sent = [row() for _ in range(5)]
    away = Database(NOWHERE)
    async with working(config_for(tmp_path, NOWHERE), make_link(away)) as office:
        for each in sent:
            office.journal.record(INTERACTION, each)
        await until(lambda: office.readiness()["database_failing"])
        await until(lambda: office.readiness()["journal_segments_waiting"] == 1)
    await away.close()
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("ab") as torn:
        torn.write(b'{"interaction": {"id": "int_to')
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        await until(lambda: _stored(world, sent))
        await until(lambda: gauge(office, "journal_torn") == 1)
    assert not list(tmp_path.glob("*.jsonl"))


async def test_records_that_the_disk_refuses_go_another_way(
    world: World, make_link: MakeLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        monkeypatch.setattr(office.journal, "_write", _full_disk)
        sent = [row(response_text="x" * 300_000) for _ in range(10)]
        for each in sent:
            office.journal.record(INTERACTION, each)
        assert office.readiness()["journal_failing"] is True
        await until(lambda: _stored(world, sent))
        await until(lambda: office.journal.unwritten == 0)
        assert (office.journal.failures, office.journal.lost) == (10, 0)
        # And those that come last, when nothing is answered any more.
        last = [row() for _ in range(3)]
        for each in last:
            office.journal.record(INTERACTION, each)
    assert await _stored(world, sent + last)
    assert office.journal.unwritten == 0


def _full_disk(line: bytes) -> None:
    raise OSError("the disk is full")


async def test_unwritten_records_wait_for_the_database_and_go_to_the_disk_once_it_has_room(
    world: World, make_link: MakeLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [row() for _ in range(4)]
    away = Database(NOWHERE)
    async with working(config_for(tmp_path, NOWHERE), make_link(away)) as office:
        with monkeypatch.context() as full:
            full.setattr(office.journal, "_write", _full_disk)
            for each in sent:
                office.journal.record(INTERACTION, each)
            await until(lambda: office.journal.handed_over)
            assert office.journal.unwritten == 4
    assert office.journal.unwritten == 0
    await away.close()
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)):
        await until(lambda: _stored(world, sent))


async def test_a_row_that_the_database_refuses_stops_nobody(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        good = [row() for _ in range(3)]
        office.journal.record(INTERACTION, good[0])
        office.journal.record(INTERACTION, row(id="int_bad", at="no date", request={"a": "the prompt"}))
        for each in good[1:]:
            office.journal.record(INTERACTION, each)
        await until(lambda: _stored(world, good))
        await until(lambda: gauge(office, "journal_refused") == 1)
    refused = tmp_path / "refused.ndjson"
    assert orjson.loads(refused.read_bytes())["id"] == "int_bad"
    assert refused.stat().st_mode & 0o777 == 0o600


async def test_trouble_of_the_database_itself_sets_no_row_aside(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        await world.execute("alter table interactions rename to away")
        sent = [row()]
        office.journal.record(INTERACTION, sent[0])
        await until(lambda: office._status.database_failing == "UndefinedTable (42P01)")
        await world.execute("alter table away rename to interactions")
        await until(lambda: _stored(world, sent))
        await until(lambda: not office.readiness()["database_failing"])
        assert (gauge(office, "journal_refused"), gauge(office, "journal_shipped")) == (0, 1)


async def test_a_segment_is_stored_once_however_often_it_is_shipped(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    sent = [row() for _ in range(3)]
    for _ in range(2):
        async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
            for each in sent:
                office.journal.record(INTERACTION, each)
    assert Counter(await world.ids()) == Counter(each["id"] for each in sent)


async def test_only_closed_segments_are_touched(world: World, make_link: MakeLink, tmp_path: Path) -> None:
    for number in (3, 4):
        line = orjson.dumps({"interaction": row(id=f"int_{number}")}, default=str)
        (tmp_path / f"{number:012d}.jsonl").write_bytes(line + b"\n")
    (tmp_path / "notes.jsonl").write_text("somebody else's")
    link = make_link(world.db)
    configure = Configure(database_url=world.db.url, spool_dir=str(tmp_path), gateway_id="gw")
    await link.start(configure, lambda message: None)
    link.send(Closed(3))

    async def first_is_stored() -> bool:
        return await world.ids() == ["int_3"]

    await until(first_is_stored)
    await until(lambda: not (tmp_path / f"{3:012d}.jsonl").exists())
    assert (tmp_path / f"{4:012d}.jsonl").exists()
    (tmp_path / f"{5:012d}.jsonl").write_bytes(b"the next worker's")
    await link.close(5)
    assert await world.ids() == ["int_3", "int_4"], "the one that its dead worker was writing"
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [f"{5:012d}.jsonl", "notes.jsonl"]


# -- usage


async def test_usage_is_told_with_the_own_share(world: World, make_link: MakeLink, tmp_path: Path) -> None:
    told: list[Totals] = []
    spent = {"prompt_tokens": 10, "completion_tokens": 5, "cost_usd": "0.25"}
    async with working(config_for(tmp_path, world.db.url), make_link(world.db)) as office:
        office.on_totals = told.append
        office.journal.record(INTERACTION, row(**spent))
        office.journal.record(INTERACTION, row(**spent, kind="shadow"))
        office.journal.record(INTERACTION, row(**spent, status="rejected"))
        await until(lambda: gauge(office, "journal_shipped") == 3)
        assert told == [], "nobody is watched"
        office.watch({"key:app", "key:nobody"})
        # Another gateway's.
        await interactions.copy_batch(world.db, [row(**spent), row(**spent)])

        def last(subject: str) -> SubjectTotal | None:
            totals = told[-1].totals if told else []
            return next((each for each in totals if each.subject == subject), None)

        def all_counted() -> bool:
            total = last("key:app")
            return total is not None and total.day_requests == 3

        await until(all_counted)
        assert told[-1].day == now().date()
        assert last("key:app") == SubjectTotal(
            "key:app", 3, 45, Decimal("0.75"), Decimal("0.75"), 1, 15, Decimal("0.25")
        )
        assert last("key:nobody") == SubjectTotal(
            "key:nobody", 0, 0, Decimal(0), Decimal(0), 0, 0, Decimal(0)
        )
        office.watch(["shadow:" + USE_CASE])
        await until(lambda: last("shadow:" + USE_CASE))
        assert last("key:app") is None


async def test_the_own_share_is_never_ahead_of_the_total(
    world: World, make_link: MakeLink, tmp_path: Path
) -> None:
    told: list[Totals] = []
    async with working(config_for(tmp_path, world.db.url, flush_rows=3), make_link(world.db)) as office:
        office.on_totals = told.append
        for number in range(60):
            office.journal.record(INTERACTION, row(cost_usd="0.01"))
            office.watch(["key:app", f"use_case:{number}"])  # each asks for a reading at once
            await asyncio.sleep(0.005)
        await until(lambda: told and told[-1].totals[0].day_requests == 60)
    assert len(told) > 5
    ours = [(total.day_requests, total.own_requests) for each in told for total in each.totals[:1]]
    assert all(total == own for total, own in ours), ours
    assert office.table.failing is None
