"""Interactions, the feedback on them, and the incidents found in them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, cast

import orjson
import psycopg
from sqlalchemy import Table, TextClause, case, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock, events, usage
from storage.database import Database
from storage.ids import new_id
from storage.rows import columns_for, load
from storage.tables.traffic import feedback, incidents, interactions
from storage.usage import UsageDelta
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


#: COPY's binary format: a head, then for each row the number of its fields and each field with its length.
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_ROW_HEAD = struct.Struct("!hi")
#: An escaped NUL, which no text of PostgreSQL can hold; not the six characters of somebody who writes of one.
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def is_row_fault(error: BaseException) -> bool:
    """Whether the database refused a batch for what one of its rows holds: it would refuse it for ever.

    Anything else (away, full, read-only, not migrated yet) is the database's own trouble and will pass.
    """
    cause = getattr(error, "orig", None) or error
    too_large = isinstance(cause, psycopg.Error) and (cause.sqlstate or "").startswith("54")
    return too_large or isinstance(cause, psycopg.DataError | psycopg.IntegrityError)


def words_of(error: BaseException) -> str:
    """What may be written down of a failure: the server's own reports quote rows, and rows hold prompts."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, psycopg.Error) and cause.sqlstate:
        return f"{type(cause).__name__} ({cause.sqlstate})"
    return str(cause) or type(cause).__name__


async def copy_batch(
    database: Database,
    batch: Sequence[Mapping[str, Any]],
    feedback_batch: Sequence[Mapping[str, Any]] = (),
) -> Copied:
    """Store a batch of interactions and feedback, as :func:`copy_documents` does."""
    defaults = {"stream": False, "usage_estimated": False}
    documents = [orjson.dumps({**defaults, **record}, default=str) for record in batch]
    return await copy_documents(
        database, documents, [orjson.dumps(record, default=str) for record in feedback_batch]
    )


@dataclass(frozen=True, slots=True)
class Copied:
    """What was new in a batch."""

    fresh: int  #: interactions that were not known yet
    usage: list[UsageDelta]  #: what they have added, as it is counted by now


async def copy_documents(
    database: Database, batch: Sequence[bytes], feedback_batch: Sequence[bytes]
) -> Copied:
    """Store a batch of interactions and feedback by COPY, once: rows whose id is known are skipped.

    Each is a JSON object of columns, and is not looked into on this side: that would cost more than all
    else that logging does. In the same transaction new rows are added to the usage of their subjects, and
    those with findings open an incident.
    """
    async with database.transaction() as connection:
        moved = await _copy_new(connection, interactions, batch)
        await _copy_new(connection, feedback, feedback_batch)
        for record in moved.found:
            await _open_incident(connection, record)
        deltas = [_delta(each) for each in moved.used]
        await usage.add(connection, deltas)
    return Copied(moved.fresh, deltas)


@dataclass(frozen=True, slots=True)
class _Moved:
    """What there is to say of the new rows of a batch."""

    fresh: int = 0
    found: Sequence[Mapping[str, Any]] = ()  #: those with findings
    used: Sequence[Mapping[str, Any]] = ()  #: sums by subject and day


def _delta(row: Mapping[str, Any]) -> UsageDelta:
    return UsageDelta(
        subject=row["subject"],
        requests=row["requests"],
        tokens=row["tokens"],
        cost_usd=Decimal(row["cost_usd"]),
        day=date.fromisoformat(row["day"]),
    )


async def _copy_new(connection: AsyncConnection, table: Table, batch: Sequence[bytes]) -> _Moved:
    if not batch:
        return _Moved()
    # It stays with its connection: one made and dropped for each batch would bloat the catalogue.
    staging = f"staging_{table.name}"
    await connection.execute(
        text(f"create temp table if not exists {staging} (row json) on commit delete rows")
    )
    raw = (await connection.get_raw_connection()).driver_connection
    driver = cast("psycopg.AsyncConnection[Any]", raw)
    async with driver.cursor() as cursor, cursor.copy(f"copy {staging} from stdin (format binary)") as copy:
        await copy.write(_copy_data(batch))
    moved = (await connection.execute(_MOVE[table.name])).one()
    return _Moved(moved.fresh, moved.found, moved.used)


def _copy_data(batch: Sequence[bytes]) -> bytes:
    pieces = [_COPY_HEAD]
    for document in batch:
        row = _NUL.sub(rb"\1", document) if b"\\u0000" in document else document
        pieces += (_ROW_HEAD.pack(1, len(row)), row)
    return b"".join((*pieces, _COPY_END))


def _move_statement(
    table: Table, kept: str = "id", found: str = "'[]'::jsonb", used: str = "'[]'::jsonb"
) -> TextClause:
    """From the staging table to its own, and what there is to say of the new rows by the columns kept."""
    names = ", ".join(column.name for column in table.columns)
    return text(
        f"with moved as (insert into {table.name} ({names}) select {names}"  # noqa: S608  # our own names
        f" from staging_{table.name} as staging, json_populate_record(null::{table.name}, staging.row)"
        f" on conflict do nothing returning {kept})"
        f" select count(*) as fresh, {found} as found, {used} as used from moved"
    )


#: Whose usage a row counts for: its key's, and its use case's if a caller waited for it.
_SUBJECTS = f"""(values
  (case when kind in ('{InteractionKind.LIVE}', '{InteractionKind.EVALUATION}', '{InteractionKind.ROUTED}')
        then 'key:' || key_id end),
  (case kind when '{InteractionKind.LIVE}' then 'use_case:' || use_case
             when '{InteractionKind.SHADOW}' then 'shadow:' || use_case end))"""
#: Sums go out as text where JSON would make floats of them.
_USED = f"""(select coalesce(jsonb_agg(to_jsonb(sums)), '[]') from (
  select subject, to_char(at at time zone 'UTC', 'YYYY-MM-DD') as day, count(*) as requests,
         sum(coalesce(prompt_tokens, 0)::bigint + coalesce(completion_tokens, 0)) as tokens,
         sum(coalesce(cost_usd, 0))::text as cost_usd
  from moved, lateral {_SUBJECTS} as counted (subject)
  where subject is not null and status <> '{InteractionStatus.REJECTED}'
  group by 1, 2 order by 1, 2) as sums)"""  # noqa: S608  # our own words


_MOVE = {
    interactions.name: _move_statement(
        interactions,
        "id, at, kind, use_case, key_id, status, rollout_id, arm, release_id, findings,"
        " prompt_tokens, completion_tokens, cost_usd",
        "coalesce(jsonb_agg(to_jsonb(moved)) filter (where findings <> '[]'), '[]')",
        _USED,
    ),
    feedback.name: _move_statement(feedback),
}


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an analysis needs of an interaction: how it ended and what it took, and none of the words."""

    id: str
    at: datetime
    arm: str | None
    weight: float | None
    unit: str | None
    status: str
    cost_usd: Decimal | None
    latency_ms: float | None
    flagged: bool  #: a detector found something


def _outcome_columns(table: Any) -> list[Any]:
    flagged = func.coalesce(func.jsonb_array_length(table.findings) > 0, False).label("flagged")
    names = [name for name in Outcome.__dataclass_fields__ if name != "flagged"]
    return [*(table[name] for name in names), flagged]


async def canary_outcomes(connection: AsyncConnection, rollout_id: str) -> list[Outcome]:
    """The live answers that a rollout is judged by, in the order in which they began.

    A fallback's answer is not among them: the arm that was drawn is the one that failed.
    """
    table = interactions.c
    query = (
        select(*_outcome_columns(table))
        .where(
            table.rollout_id == rollout_id,
            table.kind == InteractionKind.LIVE,
            table.fallback_of.is_(None),
            table.arm.is_not(None),
            table.unit.is_not(None),
        )
        .order_by(table.at)
    )
    return [Outcome(*row) for row in await connection.execute(query)]


async def shadow_pairs(connection: AsyncConnection, rollout_id: str) -> list[tuple[Outcome, Outcome]]:
    """(stable's answer, candidate's answer in the shadow) to the same request, oldest first."""
    shadow, original = interactions.alias("shadow"), interactions.alias("original")
    mine, theirs = _outcome_columns(original.c), _outcome_columns(shadow.c)
    query = (
        select(*mine, *theirs)
        .join_from(shadow, original, original.c.id == shadow.c.shadow_of)
        .where(shadow.c.rollout_id == rollout_id, shadow.c.kind == InteractionKind.SHADOW)
        .order_by(shadow.c.at)
    )
    size = len(mine)
    return [(Outcome(*row[:size]), Outcome(*row[size:])) for row in await connection.execute(query)]


async def live_outcomes(
    connection: AsyncConnection, *, use_case: str, release_id: str, since: datetime, limit: int
) -> list[Outcome]:
    """How the live answers of a release ended, newest first."""
    table = interactions.c
    query = (
        select(*_outcome_columns(table))
        .where(
            table.use_case == use_case,
            table.release_id == release_id,
            table.kind == InteractionKind.LIVE,
            table.at >= since,
        )
        .order_by(table.at.desc())
        .limit(limit)
    )
    return [Outcome(*row) for row in await connection.execute(query)]


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
