"""The registry: sources, the offerings they list, what changed, and how offerings rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.ids import new_id
from storage.rows import columns_for, load, load_optional
from storage.tables.catalogue import offering_changes, offerings, rankings, sources


@dataclass(frozen=True, slots=True)
class Source:
    """Where models are discovered, and how the last scan of it went."""

    name: str
    kind: str
    last_attempt_at: datetime | None
    last_success_at: datetime | None
    last_error: str | None
    offerings: int


@dataclass(frozen=True, slots=True)
class Offering:
    """A model as one source offers it."""

    id: str
    source: str
    external_id: str
    provider: str
    model: str
    reachable: bool
    price_input: Decimal | None  #: USD per token; None = unknown, never free
    price_output: Decimal | None
    context_tokens: int | None
    output_tokens: int | None
    capabilities: list[str]
    lifecycle: str
    retires_at: datetime | None
    payload_digest: str
    payload: dict[str, Any]
    first_seen_at: datetime
    last_seen_at: datetime
    scans_missed: int


@dataclass(frozen=True, slots=True)
class OfferingChange:
    """One event in the life of an offering."""

    id: int
    offering_id: str
    at: datetime
    kind: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates for a use case, best first, and why the others were excluded."""

    id: str
    use_case: str
    at: datetime
    stable_offering: str | None
    profile: dict[str, Any]
    candidates: list[dict[str, Any]]
    excluded: dict[str, Any]


async def record_attempt(
    connection: AsyncConnection, *, name: str, kind: str, error: str | None, count: int | None = None
) -> None:
    """Note that a source was scanned, and how it went."""
    moment = clock.now()
    values: dict[str, Any] = {"kind": kind, "last_attempt_at": moment, "last_error": error}
    if error is None:
        values |= {"last_success_at": moment, "offerings": count or 0}
    statement = upsert(sources).values(name=name, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


async def find_source(connection: AsyncConnection, name: str) -> Source | None:
    """The source of that name, if it was ever scanned."""
    query = select(*columns_for(Source, sources)).where(sources.c.name == name)
    return load_optional(Source, (await connection.execute(query)).first())


async def withdraw_sources(connection: AsyncConnection, keep: Sequence[str]) -> int:
    """Offerings of sources other than these can no longer be called. Returns how many that struck."""
    statement = update(offerings).where(offerings.c.reachable, offerings.c.source.not_in(list(keep)))
    return (await connection.execute(statement.values(reachable=False))).rowcount


async def list_sources(connection: AsyncConnection) -> list[Source]:
    """Every source, by name."""
    return [load(Source, row) for row in await connection.execute(select(sources).order_by(sources.c.name))]


async def offerings_of(connection: AsyncConnection, source: str) -> dict[str, Offering]:
    """What a source offered so far, by its own id."""
    query = select(*columns_for(Offering, offerings)).where(offerings.c.source == source)
    return {row.external_id: load(Offering, row) for row in await connection.execute(query)}


async def insert_offerings(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """New offerings; returns their ids in order."""
    if not rows:
        return []
    complete = [{"id": new_id("off"), **row} for row in rows]
    await connection.execute(insert(offerings), complete)
    return [row["id"] for row in complete]


async def update_offering(connection: AsyncConnection, offering_id: str, **values: Any) -> None:
    """Bring an offering to what its source says now."""
    await connection.execute(update(offerings).where(offerings.c.id == offering_id).values(**values))


async def update_offerings(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same for many at once: each row has an ``id``, and all have the same other keys."""
    if not rows:
        return
    statement = update(offerings).where(offerings.c.id == bindparam("row_id"))
    await connection.execute(
        statement,
        [{"row_id": row["id"], **{key: row[key] for key in row if key != "id"}} for row in rows],
    )


async def mark_seen(
    connection: AsyncConnection, source: str, moment: datetime, external_ids: Sequence[str]
) -> None:
    """The source listed these again."""
    statement = update(offerings).where(
        offerings.c.source == source, offerings.c.external_id.in_(list(external_ids))
    )
    await connection.execute(statement.values(last_seen_at=moment, scans_missed=0))


async def record_changes(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append events: {offering_id, kind, before, after}."""
    if rows:
        moment = clock.now()
        await connection.execute(insert(offering_changes), [{"at": moment, **row} for row in rows])


async def count_changes(connection: AsyncConnection, source: str, since: datetime) -> dict[str, int]:
    """How often each kind of change happened to a source's offerings."""
    query = (
        select(offering_changes.c.kind, func.count())
        .join(offerings, offerings.c.id == offering_changes.c.offering_id)
        .where(offerings.c.source == source, offering_changes.c.at >= since)
        .group_by(offering_changes.c.kind)
        .order_by(offering_changes.c.kind)
    )
    return {row[0]: int(row[1]) for row in await connection.execute(query)}


async def count_new(connection: AsyncConnection, source: str, since: datetime) -> int:
    """How many offerings of a source were first seen since then."""
    query = select(func.count()).where(offerings.c.source == source, offerings.c.first_seen_at >= since)
    return int((await connection.execute(query)).scalar_one())


async def changes(
    connection: AsyncConnection, *, since: datetime | None = None, after: int = 0, limit: int = 200
) -> list[OfferingChange]:
    """Changes, newest first."""
    query = select(*columns_for(OfferingChange, offering_changes)).order_by(offering_changes.c.id.desc())
    if since is not None:
        query = query.where(offering_changes.c.at >= since)
    query = query.where(offering_changes.c.id > after).limit(limit)
    return [load(OfferingChange, row) for row in await connection.execute(query)]


async def find_offering(connection: AsyncConnection, offering_id: str) -> Offering | None:
    """The offering of that id."""
    query = select(*columns_for(Offering, offerings)).where(offerings.c.id == offering_id)
    return load_optional(Offering, (await connection.execute(query)).first())


async def find_by_model(connection: AsyncConnection, provider: str, model: str) -> Offering | None:
    """The reachable offering that a provider and model name stand for, else any listed one."""
    query = (
        select(*columns_for(Offering, offerings))
        .where(offerings.c.provider == provider, offerings.c.model == model)
        .order_by(offerings.c.reachable.desc(), offerings.c.last_seen_at.desc())
        .limit(1)
    )
    return load_optional(Offering, (await connection.execute(query)).first())


async def list_offerings(
    connection: AsyncConnection,
    *,
    source: str | None = None,
    search: str | None = None,
    reachable: bool | None = None,
    limit: int = 100,
    offset: int = 0,
) -> list[Offering]:
    """Offerings, reachable ones first, then by name."""
    query = select(*columns_for(Offering, offerings)).order_by(
        offerings.c.reachable.desc(), offerings.c.provider, offerings.c.model, offerings.c.id
    )
    if source is not None:
        query = query.where(offerings.c.source == source)
    if search:
        query = query.where(offerings.c.external_id.icontains(search, autoescape=True))
    if reachable is not None:
        query = query.where(offerings.c.reachable.is_(reachable))
    return [load(Offering, row) for row in await connection.execute(query.limit(limit).offset(offset))]


async def all_offerings(connection: AsyncConnection) -> list[Offering]:
    """The whole catalogue, for ranking."""
    return [
        load(Offering, row) for row in await connection.execute(select(*columns_for(Offering, offerings)))
    ]


async def count_offerings(connection: AsyncConnection) -> int:
    """How many offerings are known."""
    return int((await connection.execute(select(func.count()).select_from(offerings))).scalar_one())


async def save_ranking(
    connection: AsyncConnection,
    *,
    ranking_id: str,
    use_case: str,
    stable_offering: str | None,
    profile: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    excluded: Mapping[str, Any],
) -> None:
    """Keep a ranking; the same id twice is the same ranking."""
    statement = upsert(rankings).values(
        id=ranking_id,
        use_case=use_case,
        at=clock.now(),
        stable_offering=stable_offering,
        profile=dict(profile),
        candidates=[dict(each) for each in candidates],
        excluded=dict(excluded),
    )
    await connection.execute(statement.on_conflict_do_nothing(index_elements=["id"]))


async def find_ranking(connection: AsyncConnection, ranking_id: str) -> Ranking | None:
    """The ranking of that id."""
    query = select(*columns_for(Ranking, rankings)).where(rankings.c.id == ranking_id)
    return load_optional(Ranking, (await connection.execute(query)).first())


async def latest_ranking(connection: AsyncConnection, use_case: str) -> Ranking | None:
    """The newest ranking of a use case."""
    query = (
        select(*columns_for(Ranking, rankings))
        .where(rankings.c.use_case == use_case)
        .order_by(rankings.c.at.desc())
        .limit(1)
    )
    return load_optional(Ranking, (await connection.execute(query)).first())
