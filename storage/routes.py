"""Routes: for each use case an immutable, revisioned answer to "who answers?".

Written by rollouts, read by gateways as one snapshot, and acknowledged by them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select, true
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import is_one_of, lock_in_transaction, notify
from storage.routing import (
    DeploymentSpec,
    KeyRecord,
    PinnableRelease,
    Route,
    RouteArm,
    RoutingSnapshot,
    Serving,
)
from storage.servings import DeclaredServing, read_limits, read_serving
from storage.tables.fleet import deployments, gateways, releases, routes, use_cases
from storage.tables.identity import api_keys
from storage.vocabulary import Arm, AssignmentUnit

_log = logging.getLogger(__name__)

#: The NOTIFY channel of everything that gateways serve by.
CHANNEL = "routes"
#: The payload that says: prices of deployments have moved, read everything anew.
PRICES = "prices"
#: So many releases of a use case may be called by name, beside those that have served.
NEWEST_RELEASES = 200

#: Clocks differ, and a row is seen only when its transaction commits.
_OVERLAP = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class ArmSetting:
    """What a new revision says of one arm."""

    arm: Arm
    release_id: str
    weight: float


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A stored revision."""

    version: int
    use_case: str
    revision: int
    assignment_unit: str
    salt: str
    rollout_id: str | None
    arms: list[dict[str, Any]]
    reason: str
    created_by: str
    created_at: datetime

    def release_of(self, arm: Arm) -> str | None:
        """The release on that arm."""
        return next((each["release_id"] for each in self.arms if each["arm"] == arm), None)


async def lock(connection: AsyncConnection) -> None:
    """Become the one writer of routes until the end of the transaction; the audit is locked after it."""
    await lock_in_transaction(connection, "routes")


async def set_route(
    connection: AsyncConnection,
    *,
    use_case: str,
    arms: Sequence[ArmSetting],
    assignment_unit: AssignmentUnit,
    reason: str,
    created_by: str,
    rollout_id: str | None = None,
) -> RouteRow:
    """Add a revision; gateways are woken when the transaction commits.

    The salt is the rollout, so that no unit is always among the first to meet a new model, and the same
    unit keeps its side while the weight of one rollout grows. Asking for what already stands changes nothing.
    """
    # One writer at a time over all use cases: versions are then committed in their order, and a gateway
    # that acknowledges one has seen every one before it.
    await lock(connection)
    current = await current_route(connection, use_case)
    settings = [{"arm": arm.arm, "release_id": arm.release_id, "weight": arm.weight} for arm in arms]
    if current is not None and current.arms == settings and current.rollout_id == rollout_id:
        return current
    revision = current.revision + 1 if current else 1
    statement = insert(routes).values(
        use_case=use_case,
        revision=revision,
        assignment_unit=assignment_unit,
        salt=rollout_id or f"{use_case}:{revision}",
        rollout_id=rollout_id,
        arms=settings,
        reason=reason,
        created_by=created_by,
        created_at=clock.now(),
    )
    row = (await connection.execute(statement.returning(*routes.c))).one()
    await notify(connection, CHANNEL, use_case)
    return RouteRow(**row._mapping)


async def current_route(connection: AsyncConnection, use_case: str) -> RouteRow | None:
    """The newest revision of a use case."""
    query = select(routes).where(routes.c.use_case == use_case).order_by(routes.c.revision.desc()).limit(1)
    row = (await connection.execute(query)).first()
    return RouteRow(**row._mapping) if row else None


async def route_history(connection: AsyncConnection, use_case: str, limit: int = 50) -> list[RouteRow]:
    """Revisions, newest first."""
    query = (
        select(routes).where(routes.c.use_case == use_case).order_by(routes.c.revision.desc()).limit(limit)
    )
    return [RouteRow(**row._mapping) for row in await connection.execute(query)]


async def load_snapshot(connection: AsyncConnection) -> RoutingSnapshot:
    """The current routes, the rules of serving, the releases that may be called, and the keys.

    Releases come last: whatever a route names was there before it, so that a route set meanwhile can
    neither be half seen nor counted in the version. Of a use case these may be called: what its route or
    somebody's rules name, what was ever stable, and the newest :data:`NEWEST_RELEASES`.
    """
    rows = await _newest_routes(connection)
    declared = await _servings(connection)
    known = await _releases(connection, _named(rows, declared))
    specs = {name: release.deployment for name, release in known.items()}
    return RoutingSnapshot(
        version=max((row.version for row in rows), default=0),
        routes={row.use_case: _route(row, specs) for row in rows},
        servings={name: serving.resolve(specs) for name, serving in declared.items()},
        releases=known,
        keys=await _keys(connection),
    )


async def load_changes(
    connection: AsyncConnection, known: RoutingSnapshot, since: datetime
) -> RoutingSnapshot:
    """What :func:`load_snapshot` would give, read for little by whoever has read all before.

    ``since`` is a moment before ``known`` was read. What has not changed is the very same object. Prices
    of what is known are not looked at: a notification that says :data:`PRICES` asks for a full load.
    """
    rows = await _routes_after(connection, known.version)
    declared = await _servings(connection)
    releases_now = await _changed_releases(connection, known, rows, declared, since - _OVERLAP)
    specs = {name: releases_now[name].deployment for name in _named(rows, declared) if name in releases_now}
    changed = {row.use_case: _route(row, specs) for row in rows}
    servings = {name: serving.resolve(specs) for name, serving in declared.items()}
    keys = await _keys(connection)
    return RoutingSnapshot(
        version=max((known.version, *(row.version for row in rows))),
        routes={**known.routes, **changed} if changed else known.routes,
        servings=known.servings if servings == known.servings else servings,
        releases=releases_now,
        keys=known.keys if keys == known.keys else keys,
    )


async def _newest_routes(connection: AsyncConnection) -> list[Any]:
    # From each use case straight to its newest revision: the history grows without end.
    newest = (
        select(routes)
        .where(routes.c.use_case == use_cases.c.name)
        .order_by(routes.c.revision.desc())
        .limit(1)
        .lateral()
    )
    return list(await connection.execute(select(newest).select_from(use_cases).join(newest, true())))


async def _routes_after(connection: AsyncConnection, version: int) -> list[Any]:
    query = (
        select(routes)
        .where(routes.c.version > version)
        .ext(distinct_on(routes.c.use_case))
        .order_by(routes.c.use_case, routes.c.revision.desc())
    )
    return list(await connection.execute(query))


async def _servings(connection: AsyncConnection) -> dict[str, DeclaredServing]:
    """Of the use cases that have rules of their own."""
    query = select(use_cases.c.name, use_cases.c.serving).where(use_cases.c.serving != {})
    return {name: read_serving(name, document) for name, document in await connection.execute(query)}


def _named(rows: Iterable[Any], declared: Mapping[str, DeclaredServing]) -> set[str]:
    """The releases that routes and rules name."""
    named = {each["release_id"] for row in rows for each in row.arms}
    named.update(name for serving in declared.values() for name in serving.releases)
    return named


async def _changed_releases(
    connection: AsyncConnection,
    known: RoutingSnapshot,
    rows: Sequence[Any],
    declared: Mapping[str, DeclaredServing],
    since: datetime,
) -> Mapping[str, PinnableRelease]:
    """The releases as they are now: read anew for each use case in which one came, went, or was named."""
    before = _in_routes(known.routes.get(row.use_case) for row in rows)
    before |= _in_servings(known.servings.values())
    renamed = before ^ _named(rows, declared)
    query = select(releases.c.id, releases.c.use_case).where(
        is_one_of(releases.c.id, renamed) | (releases.c.created_at > since) | (releases.c.stable_at > since)
    )
    touched = {
        use_case
        for name, use_case in await connection.execute(query)
        if name in renamed or name not in known.releases
    }
    if not touched:
        return known.releases
    moved = {row.use_case for row in rows}
    named = _named(rows, declared)
    named |= _in_routes(route for name, route in known.routes.items() if name not in moved)
    others = {name: each for name, each in known.releases.items() if each.use_case not in touched}
    return others | await _releases(connection, named, touched)


def _in_routes(values: Iterable[Route | None]) -> set[str]:
    return {arm.release_id for route in values if route is not None for arm in route.arms}


def _in_servings(values: Iterable[Serving]) -> set[str]:
    return {each.release_id for serving in values for each in (*serving.fallbacks, serving.downgrade) if each}


async def _releases(
    connection: AsyncConnection, named: Collection[str], of: Collection[str] | None = None
) -> dict[str, PinnableRelease]:
    """The releases that may be called: of some use cases, or of all."""
    newest_first = func.row_number().over(
        partition_by=releases.c.use_case, order_by=(releases.c.created_at.desc(), releases.c.id.desc())
    )
    placed = select(
        releases.c.id,
        releases.c.use_case,
        releases.c.deployment_id,
        releases.c.was_stable,
        newest_first.label("place"),
    )
    if of is not None:
        placed = placed.where(is_one_of(releases.c.use_case, of))
    row = placed.subquery()
    query = (
        select(row.c.id.label("release_id"), row.c.use_case, deployments)
        .join(deployments, deployments.c.id == row.c.deployment_id)
        .where((row.c.place <= NEWEST_RELEASES) | row.c.was_stable | is_one_of(row.c.id, named))
    )
    specs: dict[str, DeploymentSpec] = {}  # most releases share a few deployments
    return {
        each.release_id: PinnableRelease(
            each.use_case, specs.get(each.id) or specs.setdefault(each.id, _spec(each))
        )
        for each in await connection.execute(query)
    }


def _spec(row: Any) -> DeploymentSpec:
    return DeploymentSpec(
        id=row.id,
        provider=row.provider,
        model=row.model,
        parameters=row.parameters,
        system_prompt=row.system_prompt,
        guard_profile=row.guard_profile,
        price_input=row.price_input,
        price_output=row.price_output,
    )


async def _keys(connection: AsyncConnection) -> dict[str, KeyRecord]:
    moment = clock.now()
    valid = api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > moment)
    query = select(api_keys).where(api_keys.c.revoked_at.is_(None), valid)
    return {row.id: _key(row, moment) for row in await connection.execute(query)}


def _key(row: Any, moment: datetime) -> KeyRecord:
    in_grace = row.previous_until is not None and row.previous_until > moment
    return KeyRecord(
        id=row.id,
        name=row.name,
        secret_sha256=row.secret_sha256,
        scopes=frozenset(row.scopes),
        use_cases=None if row.use_cases is None else frozenset(row.use_cases),
        expires_at=row.expires_at,
        previous_sha256=row.previous_sha256 if in_grace else None,
        previous_until=row.previous_until if in_grace else None,
        limits=read_limits(row.id, row.limits),
    )


def _route(row: Any, specs: Mapping[str, DeploymentSpec]) -> Route:
    arms = tuple(
        RouteArm(Arm(each["arm"]), each["release_id"], specs[each["release_id"]], float(each["weight"]))
        for each in row.arms
        if each["release_id"] in specs
    )
    if len(arms) < len(row.arms):  # one bad route must not cost every use case its gateway
        _log.error("route %s of %s names a release that there is not", row.revision, row.use_case)
    return Route(
        row.use_case, row.revision, row.salt, row.rollout_id, AssignmentUnit(row.assignment_unit), arms
    )


async def acknowledge(connection: AsyncConnection, gateway_id: str, version: int) -> None:
    """A gateway says which version it serves by now."""
    values = {"routes_version": version, "seen_at": clock.now()}
    statement = upsert(gateways).values(id=gateway_id, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


async def lagging_gateways(
    connection: AsyncConnection, version: int, alive_within: timedelta = timedelta(seconds=10)
) -> list[str]:
    """Gateways that were heard of lately and do not serve that version yet."""
    query = select(gateways.c.id).where(
        gateways.c.seen_at > clock.now() - alive_within, gateways.c.routes_version < version
    )
    return list((await connection.execute(query)).scalars())
