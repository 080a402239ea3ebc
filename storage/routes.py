"""Routes: for each use case an immutable, revisioned answer to "who answers?".

Written by rollouts, read by gateways as one snapshot, and acknowledged by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import lock_in_transaction, notify
from storage.tables.fleet import deployments, gateways, releases, routes
from storage.tables.identity import api_keys
from storage.vocabulary import Arm, AssignmentUnit

#: The NOTIFY channel of new routes and keys.
CHANNEL = "routes"


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What a gateway must know to call a deployment."""

    id: str
    provider: str
    model: str
    parameters: dict[str, Any]
    system_prompt: str | None
    guard_profile: str
    price_input: Decimal  #: USD per token
    price_output: Decimal


@dataclass(frozen=True, slots=True)
class RouteArm:
    """One arm. The candidate's weight is its share of units, the shadow's the share of requests mirrored."""

    arm: Arm
    release_id: str
    deployment: DeploymentSpec
    weight: float


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers for a use case, in one revision."""

    use_case: str
    revision: int
    salt: str
    rollout_id: str | None
    assignment_unit: AssignmentUnit
    arms: tuple[RouteArm, ...]

    def find(self, arm: Arm) -> RouteArm | None:
        """The arm of that name, if the route has it."""
        return next((each for each in self.arms if each.arm is arm), None)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a gateway must know of an application's key: a digest, never the secret."""

    id: str
    name: str
    secret_sha256: str
    scopes: frozenset[str]
    use_cases: frozenset[str] | None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """Everything a gateway needs to serve on its own, at one version."""

    version: int
    routes: dict[str, Route]
    releases: dict[str, tuple[str, DeploymentSpec]]  #: release id -> (use case, deployment)
    keys: dict[str, KeyRecord]

    def to_json(self) -> dict[str, Any]:
        """A JSON document that :meth:`from_json` reads back."""
        return {
            "version": self.version,
            "routes": [_route_to_json(route) for route in self.routes.values()],
            "releases": {
                key: [use_case, _spec_to_json(spec)] for key, (use_case, spec) in self.releases.items()
            },
            "keys": [
                {
                    **dataclasses.asdict(key),
                    "scopes": sorted(key.scopes),
                    "use_cases": None if key.use_cases is None else sorted(key.use_cases),
                    "expires_at": key.expires_at and key.expires_at.isoformat(),
                }
                for key in self.keys.values()
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RoutingSnapshot:
        """The inverse of :meth:`to_json`; raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            version=int(document["version"]),
            routes={each["use_case"]: _route_from_json(each) for each in document["routes"]},
            releases={key: (pair[0], _spec_from_json(pair[1])) for key, pair in document["releases"].items()},
            keys={each["id"]: _key_from_json(each) for each in document["keys"]},
        )


def _spec_to_json(spec: DeploymentSpec) -> dict[str, Any]:
    return {
        **dataclasses.asdict(spec),
        "price_input": str(spec.price_input),
        "price_output": str(spec.price_output),
    }


def _spec_from_json(document: Mapping[str, Any]) -> DeploymentSpec:
    return DeploymentSpec(
        **{
            **document,
            "price_input": Decimal(document["price_input"]),
            "price_output": Decimal(document["price_output"]),
        }
    )


def _route_to_json(route: Route) -> dict[str, Any]:
    return {
        "use_case": route.use_case,
        "revision": route.revision,
        "salt": route.salt,
        "rollout_id": route.rollout_id,
        "assignment_unit": route.assignment_unit,
        "arms": [
            {
                "arm": arm.arm,
                "release_id": arm.release_id,
                "weight": arm.weight,
                "deployment": _spec_to_json(arm.deployment),
            }
            for arm in route.arms
        ],
    }


def _route_from_json(document: Mapping[str, Any]) -> Route:
    arms = tuple(
        RouteArm(
            Arm(each["arm"]), each["release_id"], _spec_from_json(each["deployment"]), float(each["weight"])
        )
        for each in document["arms"]
    )
    return Route(
        use_case=document["use_case"],
        revision=int(document["revision"]),
        salt=document["salt"],
        rollout_id=document["rollout_id"],
        assignment_unit=AssignmentUnit(document["assignment_unit"]),
        arms=arms,
    )


def _key_from_json(document: Mapping[str, Any]) -> KeyRecord:
    use_cases, expires_at = document["use_cases"], document.get("expires_at")
    return KeyRecord(
        id=document["id"],
        name=document["name"],
        secret_sha256=document["secret_sha256"],
        scopes=frozenset(document["scopes"]),
        use_cases=None if use_cases is None else frozenset(use_cases),
        expires_at=datetime.fromisoformat(expires_at) if isinstance(expires_at, str) else expires_at,
    )


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
    """The current routes, the releases that may be pinned, and the keys.

    Routes are read first: whatever a route names was there before it, so that a route set meanwhile can
    neither be half seen nor counted in the version.
    """
    newest = await _newest_routes(connection)
    known = await _releases(connection)
    return RoutingSnapshot(
        version=max((row.version for row in newest), default=0),
        routes={row.use_case: _route(row, known) for row in newest},
        releases=known,
        keys=await _keys(connection),
    )


async def _newest_routes(connection: AsyncConnection) -> list[Any]:
    query = (
        select(routes)
        .ext(distinct_on(routes.c.use_case))
        .order_by(routes.c.use_case, routes.c.revision.desc())
    )
    return list(await connection.execute(query))


async def _releases(connection: AsyncConnection) -> dict[str, tuple[str, DeploymentSpec]]:
    query = select(releases.c.id.label("release_id"), releases.c.use_case, deployments).join(
        deployments, deployments.c.id == releases.c.deployment_id
    )
    return {row.release_id: (row.use_case, _spec(row)) for row in await connection.execute(query)}


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
    valid = api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > clock.now())
    query = select(api_keys).where(api_keys.c.revoked_at.is_(None), valid)
    return {row.id: _key_from_json(dict(row._mapping)) for row in await connection.execute(query)}


def _route(row: Any, known: Mapping[str, tuple[str, DeploymentSpec]]) -> Route:
    arms = tuple(
        RouteArm(Arm(each["arm"]), each["release_id"], known[each["release_id"]][1], float(each["weight"]))
        for each in row.arms
    )
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
