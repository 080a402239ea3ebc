"""The scan: what is stored, what counts as a change, and what a crash between two steps does not do."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from pipelines.discovery.scan import run_scan
from pipelines.discovery.sources.price_map import price_map_path
from storage import audit, registry


def models(*names, **common):
    return {"data": [{"id": name, **common} for name in names]}


async def changes_of(db):
    async with db.connection() as connection:
        by_id = {each.id: each for each in await registry.all_offerings(connection)}
        found = await registry.changes(connection, limit=10_000)
    return [(change.kind, by_id[change.offering_id].model) for change in reversed(found)]


async def offerings(db, source="lab"):
    async with db.connection() as connection:
        return await registry.offerings_of(connection, source)


async def test_the_real_price_map_is_imported_quickly_and_quietly(db, start_run):
    world = {"price_map": price_map_path()}
    started = time.monotonic()
    result = await run_scan(start_run("prop_1", **world), {})
    took = time.monotonic() - started
    assert result["offerings"] > 2000
    assert result["new"] == result["offerings"]
    assert result["changes"] == {}  # a first import is no news
    assert result["failed"] == []
    again = await run_scan(start_run("prop_2", **world), {})
    assert (again["offerings"], again["new"], again["changes"]) == (result["offerings"], 0, {})
    async with db.connection() as connection:
        rows = await audit.list_rows(connection, event="scan.finished")
        assert [row.subject for row in rows] == ["prop_2", "prop_1"]
        assert (await audit.verify(connection)).intact
    assert took < 3.0, f"importing took {took:.1f} s"


async def test_a_whole_catalogue_that_changes_is_stored_quickly(db, start_run, launch_server, said):
    names = [f"m{n}" for n in range(3500)]
    listing = models(*names, pricing={"prompt": "0.000002", "completion": "0.000004"})
    server = await launch_server(lambda _: said.json(listing))
    world = {"providers": (server.access(),)}
    await run_scan(start_run("prop_1", **world), {})
    listing = models(*names, pricing={"prompt": "0.000001", "completion": "0.000004"})
    started = time.monotonic()
    result = await run_scan(start_run("prop_2", **world), {})
    assert result["changes"] == {"price": 3500}
    assert time.monotonic() - started < 4.0


async def test_every_kind_of_change_is_recorded_once(db, start_run, launch_server, said):
    price = {"prompt": "0.000001", "completion": "0.000002"}
    base = [{"id": f"m{n}", "context_length": 1000, "pricing": price} for n in range(5)]
    listing = list(base)
    server = await launch_server(lambda _: said.json({"data": listing}))
    world = {"providers": (server.access(),)}

    async def scan(run_id):
        return await run_scan(start_run(run_id, **world), {})

    assert (await scan("prop_1"))["changes"] == {"appeared": 5}  # reachable models are news at once
    assert (await scan("prop_2"))["changes"] == {}
    listing = [
        base[0] | {"pricing": {"prompt": "0.000003", "completion": "0.000002"}},
        base[1] | {"shutdown_date": "2099-01-01"},
        base[2] | {"context_length": 2000},
        base[3] | {"supported_parameters": ["tools"]},
        {"id": "m9", "description": "new"},
    ]
    assert (await scan("prop_3"))["changes"] == {
        "appeared": 1, "capabilities": 1, "lifecycle": 1, "limits": 1, "price": 1,
    }  # fmt: skip
    assert (await offerings(db))["m4"].scans_missed == 1
    async with db.connection() as connection:
        price = next(each for each in await registry.changes(connection) if each.kind == "price")
    assert (price.before, price.after) == (
        {"price_input": "0.000001", "price_output": "0.000002"},
        {"price_input": "0.000003", "price_output": "0.000002"},
    )
    assert (await scan("prop_4"))["changes"] == {}
    assert (await scan("prop_5"))["changes"] == {"vanished": 1}
    gone = (await offerings(db))["m4"]
    assert (gone.lifecycle, gone.reachable) == ("missing", False)
    assert (await scan("prop_6"))["changes"] == {}  # gone is said once
    listing = [*listing, base[4]]
    assert (await scan("prop_7"))["changes"] == {"returned": 1}
    back = (await offerings(db))["m4"]
    assert (back.lifecycle, back.reachable, back.scans_missed) == ("active", True, 0)


async def test_a_shrinking_or_empty_catalogue_is_quarantined(db, start_run, launch_server, said):
    listing = models(*(f"m{n}" for n in range(10)))
    server = await launch_server(lambda _: said.json(listing))
    world = {"providers": (server.access(),)}
    await run_scan(start_run("prop_1", **world), {})
    for run_id, names in (("prop_2", ["m0", "m1", "m2", "m3"]), ("prop_3", [])):
        listing = models(*names)
        result = await run_scan(start_run(run_id, **world), {})
        assert result["failed"] == ["lab"]
        assert "quarantined" in result["sources"][0]["error"]
    kept = await offerings(db)
    assert len(kept) == 10
    assert all(each.reachable and each.scans_missed == 0 for each in kept.values())
    listing = models(*(f"m{n}" for n in range(5)))  # half is still believed
    assert (await run_scan(start_run("prop_4", **world), {}))["failed"] == []


async def test_a_failing_source_stops_no_other(db, start_run, launch_server, said):
    broken = await launch_server(lambda _: said(body=b"<html>"))
    fine = await launch_server(lambda _: said.json(models("m")))
    world = {"providers": (broken.access("broken"), fine.access("fine"))}
    result = await run_scan(start_run(**world), {})
    assert result["failed"] == ["broken"]
    assert set(await offerings(db, "fine")) == {"m"}
    async with db.connection() as connection:
        by_name = {each.name: each for each in await registry.list_sources(connection)}
    assert "not JSON" in by_name["broken"].last_error
    assert by_name["broken"].last_success_at is None
    assert by_name["fine"].last_error is None


async def test_what_is_no_longer_configured_cannot_be_called(db, start_run, launch_server, said):
    server = await launch_server(lambda _: said.json(models("m")))
    await run_scan(start_run("prop_1", providers=(server.access(),)), {})
    await run_scan(start_run("prop_2"), {})
    assert not (await offerings(db))["m"].reachable
    result = await run_scan(start_run("prop_3", providers=(server.access(),)), {})
    assert result["changes"] == {"returned": 1}


async def test_a_bare_openai_list_gets_its_prices_from_the_map(db, start_run, launch_server, said):
    server = await launch_server(lambda _: said.json(models("gpt-4o", "gpt-of-our-own")))
    world = {"providers": (server.access("main", "openai"),), "price_map": price_map_path()}
    await run_scan(start_run(**world), {})
    found = await offerings(db, "main")
    assert found["gpt-4o"].price_input is not None
    assert found["gpt-4o"].reachable
    assert found["gpt-of-our-own"].price_input is None


@pytest.mark.parametrize("lost", ["plan", "source:lab", "source:other", "finish"])
async def test_a_crash_after_any_step_doubles_nothing(db, start_run, launch_server, said, crash, lost):
    listing = models("a", "b", "c")
    server = await launch_server(lambda _: said.json(listing))
    other = await launch_server(lambda _: said(body=b"nonsense"))
    world = {"providers": (server.access(), other.access("other"))}
    await run_scan(start_run("prop_1", **world), {})
    listing = models("a", "b", "d", context_length=5)
    memory: dict[str, str] = {}
    with pytest.raises(crash):
        await run_scan(start_run("prop_2", memory=memory, crash_after=lost, **world), {})
    result = await run_scan(start_run("prop_2", memory=memory, **world), {})
    counted = {"appeared": 1, "limits": 2}
    # A lost plan begins the run anew: its steps then see what the first beginning has already stored,
    # but nothing had been stored before the plan was known.
    assert result["changes"] == counted
    assert result["failed"] == ["other"]
    assert Counter(kind for kind, _ in await changes_of(db)) == {"appeared": 4, "limits": 2}
    assert (await offerings(db))["c"].scans_missed == 1
    async with db.connection() as connection:
        assert len(await audit.list_rows(connection, subject="prop_2", event="scan.finished")) == 1
