"""The scan: every source is listed and the registry brought to what it says.

One durable step per source, so that a slow or broken one holds up nothing twice and stops no other.
A source that cannot be listed or believed keeps its last good listing, and its error is on record.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from pipelines.context import Context, Run
from pipelines.discovery.catalogue_diff import diff, doubt
from pipelines.discovery.price_fill import MAP_PROVIDERS, fill, index_price_map
from pipelines.discovery.source import Listing, Source, SourceError
from pipelines.discovery.sources.openai_compatible import OpenAiCompatible
from pipelines.discovery.sources.price_map import PriceMap, read_price_map
from storage import audit, clock, deployments, registry
from storage.database import lock_in_transaction

_log = logging.getLogger(__name__)

ACTOR = "pipeline"
#: Kinds whose catalogues have no ``GET /models`` in OpenAI's shape.
_NOT_LISTED = frozenset({"anthropic", "litellm"})
_LONGEST_ERROR = 300


async def run_scan(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Scan every source; what was found, source by source."""
    plan = await run.step("plan", partial(_plan, run.context))
    started_at = datetime.fromisoformat(plan["started_at"])
    outcomes = [
        await run.step(f"source:{name}", partial(_scan_source, run.context, name, started_at))
        for name in plan["sources"]
    ]
    return await run.step("finish", partial(_finish, run, outcomes))


def build_sources(context: Context) -> list[Source]:
    """The catalogues that this installation can list: the price map, and its own providers."""
    providers = [each for each in context.providers if each.kind not in _NOT_LISTED]
    known: list[Source] = [PriceMap(context.price_map)] if context.price_map else []
    return known + [OpenAiCompatible(each) for each in providers]


async def _plan(context: Context) -> dict[str, Any]:
    """Fix the list of sources and the beginning, which later steps recognise themselves by."""
    names = [source.name for source in build_sources(context)]
    started_at = clock.now()
    async with context.database.transaction() as connection:
        # A provider that was taken out of the settings cannot be called, whatever it once listed.
        await registry.withdraw_sources(connection, names)
    return {"started_at": started_at.isoformat(), "sources": names}


async def _scan_source(context: Context, name: str, started_at: datetime) -> dict[str, Any]:
    async with context.database.connection() as connection:
        standing = await registry.find_source(connection, name)
    # The step may run again after its effect: another look would count an absence twice.
    if standing is None or standing.last_attempt_at is None or standing.last_attempt_at < started_at:
        await _bring_up_to_date(context, name)
    return await _outcome(context, name, started_at)


async def _bring_up_to_date(context: Context, name: str) -> None:
    source = next((each for each in build_sources(context) if each.name == name), None)
    if source is None:
        return  # taken out of the settings between two steps; the next scan withdraws its offerings
    try:
        await _store(context, source, await _fetch(context, source))
    except SourceError as error:
        _log.warning("scan of %s: %s", name, error)
        async with context.database.transaction() as connection:
            words = str(error)[:_LONGEST_ERROR]
            await registry.record_attempt(connection, name=name, kind=source.kind, error=words)


async def _fetch(context: Context, source: Source) -> list[Listing]:
    try:
        listings = await source.fetch()
    except SourceError:
        raise
    except Exception as error:
        # The seam to foreign catalogues: what an adapter did not foresee must not stop the others.
        _log.exception("the source %s failed in a way that its adapter does not know", source.name)
        raise SourceError(f"{source.name} could not be read: {type(error).__name__}") from error
    if context.price_map is None or source.kind not in MAP_PROVIDERS:
        return listings
    now = clock.now()
    known = index_price_map(source.kind, await asyncio.to_thread(read_price_map, context.price_map, now))
    return [fill(listing, known, now) for listing in listings]


async def _store(context: Context, source: Source, listings: Sequence[Listing]) -> None:
    """Everything that one scan of a source changes, in one transaction."""
    async with context.database.transaction() as connection:
        await lock_in_transaction(connection, f"scan:{source.name}")
        known = await registry.offerings_of(connection, source.name)
        problem = doubt(known, listings)
        if problem is not None:
            raise SourceError(f"quarantined: {problem}")
        now = clock.now()
        changed = diff(known, listings, now)
        await registry.insert_offerings(
            connection, [{"source": source.name, **row} for row in changed.inserts]
        )
        await registry.update_offerings(connection, changed.updates)
        await registry.update_offerings(connection, changed.missed)
        await registry.mark_seen(connection, source.name, now, changed.seen)
        await registry.record_changes(connection, changed.changes)
        count = len({listing.external_id for listing in listings})
        await registry.record_attempt(connection, name=source.name, kind=source.kind, error=None, count=count)


async def _outcome(context: Context, name: str, since: datetime) -> dict[str, Any]:
    """What this scan did to a source, read back from the rows: the same whichever attempt did it."""
    async with context.database.connection() as connection:
        source = await registry.find_source(connection, name)
        return {
            "source": name,
            "offerings": source.offerings if source else 0,
            "new": await registry.count_new(connection, name, since),
            "changes": await registry.count_changes(connection, name, since),
            "error": source.last_error if source else "it is no longer configured",
        }


async def _finish(run: Run, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    changes: Counter[str] = Counter()
    for outcome in outcomes:
        changes.update(outcome["changes"])
    async with run.context.database.transaction() as connection:
        await deployments.refresh_prices(connection)
        result = {
            "sources": [dict(outcome) for outcome in outcomes],
            "failed": [outcome["source"] for outcome in outcomes if outcome["error"]],
            "offerings": await registry.count_offerings(connection),
            "new": sum(outcome["new"] for outcome in outcomes),
            "changes": dict(sorted(changes.items())),
        }
        await audit.append_once(connection, actor=ACTOR, event="scan.finished", subject=run.id, data=result)
    return result
