"""Interactions, the feedback on them, and the incidents found in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

import orjson
import psycopg
from sqlalchemy import Integer, Table, case, extract, func, insert, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock, events
from storage.database import Database
from storage.ids import new_id
from storage.rows import columns_for, load
from storage.tables.traffic import feedback, incidents, interactions
from storage.vocabulary import InteractionKind, InteractionStatus, Severity

#: Findings of these categories make an incident of high severity.
_GRAVE = frozenset({"suicide_self_harm", "violent_crimes", "child_exploitation", "weapons"})


@dataclass(frozen=True, slots=True)
class Interaction:
    """One logged request and response."""

    id: str
    at: datetime
    kind: str
    use_case: str
    route_revision: int | None
    rollout_id: str | None
    arm: str | None
    release_id: str | None
    deployment_id: str | None
    weight: float | None
    unit: str | None
    user_id: str | None
    conversation_id: str | None
    stream: bool
    request: dict[str, Any] | None
    response_text: str | None
    finish_reason: str | None
    status: str
    error_type: str | None
    error_message: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: Decimal | None
    latency_ms: float | None
    ttft_ms: float | None
    findings: list[dict[str, Any]] | None
    shadow_of: str | None
    fallback_of: str | None


@dataclass(frozen=True, slots=True)
class Incident:
    """A finding with the intervention taken."""

    id: str
    at: datetime
    use_case: str
    release_id: str | None
    rollout_id: str | None
    interaction_id: str | None
    category: str
    severity: str
    summary: str
    intervention: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Health:
    """How a release, or a whole use case, has done in a window of time."""

    requests: int
    units: int  #: distinct assignment units
    errors: int
    blocked: int
    p50_ms: float | None
    p95_ms: float | None
    cost_usd: Decimal
    prompt_tokens: float  #: mean per request
    completion_tokens: float

    @property
    def failure_rate(self) -> float | None:
        """Share of requests that failed or were blocked; None without requests."""
        return (self.errors + self.blocked) / self.requests if self.requests else None


def _encode(table: Table, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """One COPY row. PostgreSQL takes neither NUL characters nor lone surrogates; the log must not choke."""
    values = []
    for column in table.columns:
        value = record.get(column.name, False if column.name in ("stream", "usage_estimated") else None)
        if isinstance(column.type, JSONB):
            value = (
                None
                if value is None
                else _clean(orjson.dumps(value, default=str).decode().replace("\\u0000", ""))
            )
        elif isinstance(value, str):
            value = _clean(value)
        values.append(value)
    return tuple(values)


def _clean(value: str) -> str:
    return value.replace("\x00", "").encode("utf-8", "replace").decode()


async def copy_batch(
    database: Database,
    batch: Sequence[Mapping[str, Any]],
    feedback_batch: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Store a batch of interactions and feedback by COPY, once: rows whose id is known are skipped.

    Rows with findings open an incident in the same transaction. Returns how many interactions were new.
    """
    async with database.transaction() as connection:
        fresh = await _copy_new(connection, interactions, batch)
        await _copy_new(connection, feedback, feedback_batch)
        for record in batch:
            if record["id"] in fresh and record.get("findings"):
                await _open_incident(connection, record)
    return len(fresh)


async def _copy_new(
    connection: AsyncConnection, table: Table, batch: Sequence[Mapping[str, Any]]
) -> set[str]:
    if not batch:
        return set()
    staging = f"staging_{table.name}"
    names = ", ".join(column.name for column in table.columns)
    await connection.execute(
        text(f"create temp table {staging} (like {table.name} including defaults) on commit drop")
    )
    raw = (await connection.get_raw_connection()).driver_connection
    driver = cast("psycopg.AsyncConnection[Any]", raw)
    async with driver.cursor() as cursor, cursor.copy(f"copy {staging} ({names}) from stdin") as copy:
        for record in batch:
            await copy.write_row(_encode(table, record))
    moved = f"insert into {table.name} ({names}) select {names} from {staging} on conflict do nothing"  # noqa: S608  # our own table names
    return set((await connection.execute(text(f"{moved} returning id"))).scalars())


async def _open_incident(connection: AsyncConnection, record: Mapping[str, Any]) -> None:
    categories = sorted({str(finding.get("category", "unknown")) for finding in record["findings"]})
    live = record["kind"] == InteractionKind.LIVE
    blocked = record["status"] == InteractionStatus.BLOCKED
    await record_incident(
        connection,
        use_case=record["use_case"],
        category=categories[0],
        severity=Severity.HIGH if live and _GRAVE & set(categories) else Severity.MEDIUM,
        summary=f"Output of a {record['kind']} answer {'stopped' if blocked else 'let through'}: "
        f"{', '.join(categories)}",
        intervention="blocked" if blocked else "observed",
        release_id=record.get("release_id"),
        rollout_id=record.get("rollout_id"),
        interaction_id=record["id"],
        details={"findings": record["findings"], "arm": record.get("arm")},
    )


async def record_incident(
    connection: AsyncConnection,
    *,
    use_case: str,
    category: str,
    severity: Severity,
    summary: str,
    intervention: str,
    release_id: str | None = None,
    rollout_id: str | None = None,
    interaction_id: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Open an incident and tell the live feed."""
    incident_id = new_id("inc")
    await connection.execute(
        insert(incidents).values(
            id=incident_id,
            at=clock.now(),
            use_case=use_case,
            category=category,
            severity=severity,
            summary=summary,
            intervention=intervention,
            release_id=release_id,
            rollout_id=rollout_id,
            interaction_id=interaction_id,
            details=dict(details or {}),
        )
    )
    await events.publish(
        connection,
        kind="incident.opened",
        subject=incident_id,
        data={"use_case": use_case, "category": category, "severity": severity, "summary": summary},
    )
    return incident_id


async def list_incidents(
    connection: AsyncConnection, use_case: str | None = None, since: datetime | None = None, limit: int = 100
) -> list[Incident]:
    """Incidents, newest first."""
    query = select(*columns_for(Incident, incidents)).order_by(incidents.c.at.desc()).limit(limit)
    if use_case is not None:
        query = query.where(incidents.c.use_case == use_case)
    if since is not None:
        query = query.where(incidents.c.at >= since)
    return [load(Incident, row) for row in await connection.execute(query)]


async def of_rollout(
    connection: AsyncConnection, rollout_id: str, kind: InteractionKind, since: datetime | None = None
) -> list[Interaction]:
    """The interactions that a rollout is judged by, in the order in which they began."""
    query = (
        select(*columns_for(Interaction, interactions))
        .where(interactions.c.rollout_id == rollout_id, interactions.c.kind == kind)
        .order_by(interactions.c.at)
    )
    if since is not None:
        query = query.where(interactions.c.at >= since)
    return [load(Interaction, row) for row in await connection.execute(query)]


async def shadow_pairs(connection: AsyncConnection, rollout_id: str) -> list[tuple[Interaction, Interaction]]:
    """(stable's answer, candidate's answer in the shadow) to the same request, oldest first."""
    shadows = await of_rollout(connection, rollout_id, InteractionKind.SHADOW)
    wanted = {each.shadow_of for each in shadows if each.shadow_of}
    query = select(*columns_for(Interaction, interactions)).where(interactions.c.id.in_(wanted))
    originals = {row.id: load(Interaction, row) for row in await connection.execute(query)}
    return [(originals[each.shadow_of], each) for each in shadows if each.shadow_of in originals]


async def recent(
    connection: AsyncConnection,
    *,
    use_case: str | None = None,
    release_id: str | None = None,
    kind: InteractionKind | None = None,
    status: InteractionStatus | None = None,
    since: datetime | None = None,
    limit: int = 100,
) -> list[Interaction]:
    """Interactions, newest first."""
    query = select(*columns_for(Interaction, interactions)).order_by(interactions.c.at.desc()).limit(limit)
    wanted = {"use_case": use_case, "release_id": release_id, "kind": kind, "status": status}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(interactions.c[name] == value)
    if since is not None:
        query = query.where(interactions.c.at >= since)
    return [load(Interaction, row) for row in await connection.execute(query)]


async def find(connection: AsyncConnection, interaction_id: str) -> Interaction | None:
    """The interaction of that id."""
    query = select(*columns_for(Interaction, interactions)).where(interactions.c.id == interaction_id)
    row = (await connection.execute(query)).first()
    return None if row is None else load(Interaction, row)


async def health(
    connection: AsyncConnection,
    *,
    since: datetime,
    use_case: str | None = None,
    release_id: str | None = None,
    kind: InteractionKind = InteractionKind.LIVE,
) -> Health:
    """Counts, rates, latency and cost of a window. Requests that no deployment was asked for do not count."""
    table = interactions.c
    answered = table.latency_ms
    query = select(
        func.count().label("requests"),
        func.count(table.unit.distinct()).label("units"),
        func.coalesce(func.sum(case((table.status == InteractionStatus.ERROR, 1), else_=0)), 0).label(
            "errors"
        ),
        func.coalesce(func.sum(case((table.status == InteractionStatus.BLOCKED, 1), else_=0)), 0).label(
            "blocked"
        ),
        func.percentile_cont(0.5).within_group(answered).label("p50_ms"),
        func.percentile_cont(0.95).within_group(answered).label("p95_ms"),
        func.coalesce(func.sum(table.cost_usd), 0).label("cost_usd"),
        func.coalesce(func.avg(table.prompt_tokens), 0).label("prompt_tokens"),
        func.coalesce(func.avg(table.completion_tokens), 0).label("completion_tokens"),
    ).where(
        table.at >= since,
        table.kind == kind,
        table.status.not_in([InteractionStatus.REJECTED, InteractionStatus.CANCELLED]),
    )
    if use_case is not None:
        query = query.where(table.use_case == use_case)
    if release_id is not None:
        query = query.where(table.release_id == release_id)
    row = (await connection.execute(query)).one()
    return Health(
        requests=row.requests,
        units=row.units,
        errors=int(row.errors),
        blocked=int(row.blocked),
        p50_ms=row.p50_ms,
        p95_ms=row.p95_ms,
        cost_usd=Decimal(row.cost_usd),
        prompt_tokens=float(row.prompt_tokens),
        completion_tokens=float(row.completion_tokens),
    )


async def spend(connection: AsyncConnection, *, since: datetime, use_case: str | None = None) -> Decimal:
    """USD spent in a window on everything: live, shadow and evaluation."""
    query = select(func.coalesce(func.sum(interactions.c.cost_usd), 0)).where(interactions.c.at >= since)
    if use_case is not None:
        query = query.where(interactions.c.use_case == use_case)
    return Decimal((await connection.execute(query)).scalar_one())


async def timeline(
    connection: AsyncConnection, *, use_case: str, since: datetime, bucket_seconds: int
) -> list[dict[str, Any]]:
    """Live traffic in buckets of time by arm: requests, failures, mean latency, cost. For charts."""
    table = interactions.c
    bucket = (func.floor(extract("epoch", table.at) / bucket_seconds).cast(Integer) * bucket_seconds).label(
        "bucket"
    )
    failed = table.status.in_([InteractionStatus.ERROR, InteractionStatus.BLOCKED])
    query = (
        select(
            bucket,
            table.arm,
            func.count().label("requests"),
            func.sum(case((failed, 1), else_=0)).label("failures"),
            func.avg(table.latency_ms).label("latency_ms"),
            func.sum(table.cost_usd).label("cost_usd"),
        )
        .where(table.use_case == use_case, table.at >= since, table.kind == InteractionKind.LIVE)
        .group_by(bucket, table.arm)
        .order_by(bucket)
    )
    return [dict(row._mapping) for row in await connection.execute(query)]
