"""Deployments (what can answer) and releases (what a use case can be served by)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import notify
from storage.digests import digest
from storage.ids import new_id
from storage.routes import CHANNEL as ROUTES_CHANNEL
from storage.routes import PRICES
from storage.rows import columns_for, load, load_optional
from storage.tables.catalogue import offerings
from storage.tables.fleet import deployments, releases, routes

#: How the ``created_by`` of a route begins that a rollback has set: no other run sets routes itself.
ROLLED_BACK_BY = "run:"


@dataclass(frozen=True, slots=True)
class Deployment:
    """Something that can answer, bound by the digest of everything that decides its answer."""

    id: str
    digest: str
    provider: str
    model: str
    parameters: dict[str, Any]
    system_prompt: str | None
    guard_profile: str
    offering_id: str | None
    price_input: Decimal  #: USD per token
    price_output: Decimal


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """The one object that goes live for a use case, with what it calls; immutable: also the snapshot."""

    id: str
    use_case: str
    deployment_id: str
    evaluation_id: str | None
    created_by: str
    note: str | None
    created_at: datetime
    was_stable: bool  #: it has carried all traffic before: a target to roll back to
    provider: str
    model: str
    offering_id: str | None
    price_input: Decimal
    price_output: Decimal


async def ensure_deployment(
    connection: AsyncConnection,
    *,
    provider: str,
    model: str,
    price_input: Decimal,
    price_output: Decimal,
    parameters: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    guard_profile: str = "default",
    offering_id: str | None = None,
) -> str:
    """The id of the deployment with exactly this content, created if it is new.

    Prices are what it was bound at: they are not part of what decides the answer, and the newest win.
    """
    content = {
        "provider": provider,
        "model": model,
        "parameters": dict(parameters or {}),
        "system_prompt": system_prompt,
        "guard_profile": guard_profile,
    }
    prices = {"price_input": price_input, "price_output": price_output}
    fresh_id = new_id("dep")
    statement = upsert(deployments).values(
        id=fresh_id,
        digest=digest(content),
        offering_id=offering_id,
        created_at=clock.now(),
        **content,
        **prices,
    )
    moved = tuple_(deployments.c.price_input, deployments.c.price_output) != tuple_(
        statement.excluded.price_input, statement.excluded.price_output
    )
    statement = statement.on_conflict_do_update(index_elements=["digest"], set_=prices, where=moved)
    touched = (await connection.execute(statement.returning(deployments.c.id))).scalar_one_or_none()
    if touched is None:
        query = select(deployments.c.id).where(deployments.c.digest == digest(content))
        return str((await connection.execute(query)).scalar_one())
    if touched != fresh_id:
        await notify(connection, ROUTES_CHANNEL, PRICES)
    return str(touched)


async def find_same(
    connection: AsyncConnection,
    *,
    provider: str,
    model: str,
    parameters: Mapping[str, Any],
    system_prompt: str | None,
    guard_profile: str,
) -> Deployment | None:
    """The deployment with exactly this content, if there is one."""
    content = {
        "provider": provider,
        "model": model,
        "parameters": dict(parameters),
        "system_prompt": system_prompt,
        "guard_profile": guard_profile,
    }
    query = select(*columns_for(Deployment, deployments)).where(deployments.c.digest == digest(content))
    return load_optional(Deployment, (await connection.execute(query)).first())


async def find_deployment(connection: AsyncConnection, deployment_id: str) -> Deployment | None:
    """The deployment of that id."""
    query = select(*columns_for(Deployment, deployments)).where(deployments.c.id == deployment_id)
    return load_optional(Deployment, (await connection.execute(query)).first())


async def create_release(
    connection: AsyncConnection,
    *,
    use_case: str,
    deployment_id: str,
    created_by: str,
    evaluation_id: str | None = None,
    note: str | None = None,
) -> str:
    """A new release of a deployment for a use case."""
    release_id = new_id("rel")
    await connection.execute(
        insert(releases).values(
            id=release_id,
            use_case=use_case,
            deployment_id=deployment_id,
            created_by=created_by,
            evaluation_id=evaluation_id,
            note=note,
            created_at=clock.now(),
        )
    )
    await notify(connection, ROUTES_CHANNEL, use_case)
    return release_id


async def bind_evaluation(connection: AsyncConnection, release_id: str, evaluation_id: str) -> None:
    """Attach the evidence to a release that has none yet."""
    await connection.execute(
        update(releases)
        .where(releases.c.id == release_id, releases.c.evaluation_id.is_(None))
        .values(evaluation_id=evaluation_id)
    )


async def mark_stable(connection: AsyncConnection, release_id: str) -> None:
    """Remember that a release has carried all traffic: from now on it is a snapshot to go back to."""
    await connection.execute(
        update(releases)
        .where(releases.c.id == release_id, releases.c.was_stable.is_(False))
        .values(was_stable=True, stable_at=clock.now())
    )


def _served() -> Any:
    return select(
        *releases.c,
        deployments.c.provider,
        deployments.c.model,
        deployments.c.offering_id,
        deployments.c.price_input,
        deployments.c.price_output,
    ).join(deployments, deployments.c.id == releases.c.deployment_id)


async def find_release(connection: AsyncConnection, release_id: str) -> ServedRelease | None:
    """The release of that id, with what it calls."""
    row = (await connection.execute(_served().where(releases.c.id == release_id))).first()
    return load_optional(ServedRelease, row)


async def newest_release(connection: AsyncConnection, use_case: str, deployment_id: str) -> str | None:
    """The id of the release of a deployment that a use case was given last."""
    query = (
        select(releases.c.id)
        .where(releases.c.use_case == use_case, releases.c.deployment_id == deployment_id)
        .order_by(releases.c.created_at.desc(), releases.c.id.desc())
        .limit(1)
    )
    return (await connection.execute(query)).scalar_one_or_none()


async def list_releases(
    connection: AsyncConnection, use_case: str | None = None, limit: int = 100
) -> list[ServedRelease]:
    """Releases, newest first."""
    query = _served().order_by(releases.c.created_at.desc()).limit(limit)
    if use_case is not None:
        query = query.where(releases.c.use_case == use_case)
    return [load(ServedRelease, row) for row in await connection.execute(query)]


async def previous_stable(connection: AsyncConnection, use_case: str, than: str) -> ServedRelease | None:
    """The last release that carried all traffic of a use case, other than the one given.

    "Last" by the route history, not by age. What a rollback took away is no target: going back twice goes
    two releases back, and never forth again to the one that was bad.
    """
    for release_id in reversed(await _succession(connection, use_case)):
        if release_id != than:
            release = await find_release(connection, release_id)
            if release is not None and release.was_stable:
                return release
    return None


async def _succession(connection: AsyncConnection, use_case: str) -> list[str]:
    """Stable releases that followed one another, oldest first, without what was rolled back."""
    query = (
        select(routes.c.arms, routes.c.created_by)
        .where(routes.c.use_case == use_case)
        .order_by(routes.c.revision)
    )
    line: list[str] = []
    for row in await connection.execute(query):
        stable = next((arm["release_id"] for arm in row.arms if arm["arm"] == "stable"), None)
        if stable is None or (line and line[-1] == stable):
            continue
        if row.created_by.startswith(ROLLED_BACK_BY) and stable in line:
            del line[len(line) - line[::-1].index(stable) :]
        else:
            line.append(stable)
    return line


async def refresh_prices(connection: AsyncConnection) -> int:
    """Bring deployments to the prices that their reachable offerings list now; returns how many moved.

    A price does not decide an answer, so the deployment stays the same one; gateways are told.
    """
    matching = (
        (offerings.c.provider == deployments.c.provider)
        & (offerings.c.model == deployments.c.model)
        & offerings.c.reachable
        & offerings.c.price_input.is_not(None)
        & offerings.c.price_output.is_not(None)
        & (
            (offerings.c.price_input != deployments.c.price_input)
            | (offerings.c.price_output != deployments.c.price_output)
            | deployments.c.offering_id.is_(None)
        )
    )
    statement = (
        update(deployments)
        .where(matching)
        .values(
            price_input=offerings.c.price_input,
            price_output=offerings.c.price_output,
            offering_id=offerings.c.id,
        )
    )
    moved = (await connection.execute(statement)).rowcount
    if moved:
        await notify(connection, ROUTES_CHANNEL, PRICES)
    return moved


async def list_deployments(connection: AsyncConnection, limit: int = 200) -> list[Deployment]:
    """Deployments, newest first."""
    query = (
        select(*columns_for(Deployment, deployments)).order_by(deployments.c.created_at.desc()).limit(limit)
    )
    return [load(Deployment, row) for row in await connection.execute(query)]
