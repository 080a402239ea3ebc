"""Use cases: the named needs of applications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import notify
from storage.digests import digest
from storage.routes import CHANNEL as ROUTES_CHANNEL
from storage.rows import columns_for, load, load_optional
from storage.servings import checked_serving
from storage.tables.fleet import use_cases
from storage.vocabulary import AssignmentUnit, Risk


@dataclass(frozen=True, slots=True)
class UseCase:
    """A named need of an application, with what it demands of whatever answers."""

    name: str
    risk: str
    assignment_unit: str
    constraints: dict[str, Any]  #: context (tokens), capabilities, max_price_...
    budget_usd_per_month: float | None
    rollout_plan: dict[str, Any]  #: what differs from the default plan
    suite: dict[str, Any] | None
    suite_digest: str | None
    serving: dict[str, Any]  #: what differs from the defaults of ``storage.servings.DeclaredServing``


async def declare(
    connection: AsyncConnection,
    *,
    name: str,
    risk: Risk,
    assignment_unit: AssignmentUnit = AssignmentUnit.CONVERSATION,
    constraints: Mapping[str, Any] | None = None,
    budget_usd_per_month: float | None = None,
    rollout_plan: Mapping[str, Any] | None = None,
    suite: Mapping[str, Any] | None = None,
    serving: Mapping[str, Any] | None = None,
) -> None:
    """Create a use case, or bring it to what the configuration says now.

    Without ``serving`` the rules of serving stay as they are. Raises ValueError if they cannot be read.
    """
    moment = clock.now()
    values: dict[str, Any] = {
        "risk": risk,
        "assignment_unit": assignment_unit,
        "constraints": dict(constraints or {}),
        "budget_usd_per_month": budget_usd_per_month,
        "rollout_plan": dict(rollout_plan or {}),
        "suite": dict(suite) if suite else None,
        "suite_digest": digest(suite) if suite else None,
        "updated_at": moment,
    }
    statement = insert(use_cases).values(name=name, created_at=moment, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
    if serving is not None:
        await set_serving(connection, name, serving)


async def set_serving(connection: AsyncConnection, name: str, serving: Mapping[str, Any]) -> bool:
    """Replace the rules by which a use case is served; gateways are told. False: there is none of that name.

    Raises ValueError for rules that cannot be read.
    """
    checked = checked_serving(serving)
    known = (
        await connection.execute(
            select(use_cases.c.serving).where(use_cases.c.name == name).with_for_update()
        )
    ).scalar_one_or_none()
    if known is not None and known != checked:
        statement = update(use_cases).where(use_cases.c.name == name)
        await connection.execute(statement.values(serving=checked, updated_at=clock.now()))
        await notify(connection, ROUTES_CHANNEL, "servings")
    return known is not None


async def find(connection: AsyncConnection, name: str) -> UseCase | None:
    """The use case of that name."""
    query = select(*columns_for(UseCase, use_cases)).where(use_cases.c.name == name)
    return load_optional(UseCase, (await connection.execute(query)).first())


async def list_all(connection: AsyncConnection) -> list[UseCase]:
    """Every use case, by name."""
    query = select(*columns_for(UseCase, use_cases)).order_by(use_cases.c.name)
    return [load(UseCase, row) for row in await connection.execute(query)]
