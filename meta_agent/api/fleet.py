"""Use cases, routes, deployments, releases, rollouts and the traffic that they carry."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, status
from pydantic import BaseModel, ConfigDict, Field

from meta_agent import acting
from meta_agent.callers import Caller, World
from meta_agent.reading.fleet import get_rollout, get_use_case, read_fleet, read_rollouts, read_route
from meta_agent.reading.models import (
    DeploymentRead,
    FleetRead,
    IncidentRead,
    InteractionRead,
    MeasurementRead,
    ReleaseRead,
    RolloutRead,
    RouteAnswer,
    UseCaseRead,
    UseCaseUsage,
)
from meta_agent.reading.usage import read_use_case_usage
from storage import deployments, interactions, rollouts, use_cases
from storage.vocabulary import InteractionKind, InteractionStatus

router = APIRouter(prefix="/api/v1", tags=["fleet"])

Limit = Query(50, ge=1, le=1000)


@router.get("/health", summary="The fleet at a glance")
async def fleet(services: World) -> FleetRead:
    """Every use case with its health, spend and running rollout, and the totals."""
    async with services.database.connection() as connection:
        return await read_fleet(connection)


@router.get("/use-cases")
async def list_use_cases(services: World) -> list[UseCaseRead]:
    """Every use case, by name."""
    async with services.database.connection() as connection:
        return [UseCaseRead.model_validate(each) for each in await use_cases.list_all(connection)]


@router.get("/use-cases/{name}")
async def one_use_case(name: str, services: World) -> UseCaseRead:
    """One use case."""
    async with services.database.connection() as connection:
        return UseCaseRead.model_validate(await get_use_case(connection, name))


class UseCaseChange(BaseModel):
    """What is to change of a use case."""

    model_config = ConfigDict(extra="forbid")

    serving: dict[str, Any] = Field(
        description="merged into the rules there are (RFC 7396): null is the default again. Keys as under "
        "use_cases[].gateway in the settings; the id of a release may stand for a deployment"
    )


@router.patch("/use-cases/{name}")
async def change_use_case(name: str, body: UseCaseChange, services: World, caller: Caller) -> UseCaseRead:
    """Change how a use case is served: limits, waiting, capture, retention, fallbacks. Gateways are told."""
    await acting.change_serving(services, caller, name, body.serving)
    async with services.database.connection() as connection:
        return UseCaseRead.model_validate(await get_use_case(connection, name))


@router.get("/use-cases/{name}/usage")
async def use_case_usage(name: str, services: World) -> UseCaseUsage:
    """What was used today and in this month, by live traffic and by shadow copies."""
    async with services.database.connection() as connection:
        await get_use_case(connection, name)
        return await read_use_case_usage(connection, name)


@router.get("/use-cases/{name}/route", summary="Who answers, and who did")
async def route(name: str, services: World, limit: int = Limit) -> RouteAnswer:
    """The current route and its revisions, newest first."""
    async with services.database.connection() as connection:
        await get_use_case(connection, name)
        return await read_route(connection, name, limit)


@router.get("/deployments")
async def list_deployments(services: World, limit: int = Limit) -> list[DeploymentRead]:
    """Deployments, newest first."""
    async with services.database.connection() as connection:
        found = await deployments.list_deployments(connection, limit)
        return [DeploymentRead.model_validate(each) for each in found]


@router.get("/releases")
async def list_releases(
    services: World, use_case: str | None = None, limit: int = Limit
) -> list[ReleaseRead]:
    """Releases, newest first."""
    async with services.database.connection() as connection:
        found = await deployments.list_releases(connection, use_case, limit)
        return [ReleaseRead.model_validate(each) for each in found]


@router.get("/rollouts")
async def list_rollouts(
    services: World, use_case: str | None = None, limit: int = Limit
) -> list[RolloutRead]:
    """Rollouts, newest first."""
    async with services.database.connection() as connection:
        return await read_rollouts(connection, await rollouts.list_rollouts(connection, use_case, limit))


@router.get("/rollouts/{rollout_id}")
async def one_rollout(rollout_id: str, services: World) -> RolloutRead:
    """One rollout."""
    async with services.database.connection() as connection:
        return await get_rollout(connection, rollout_id)


@router.get("/rollouts/{rollout_id}/measurements")
async def measurements(
    rollout_id: str, services: World, after: int = Query(0, ge=0), limit: int = Query(1000, ge=1, le=5000)
) -> list[MeasurementRead]:
    """What the analysis said, oldest first; ``after`` is the id of the last one known."""
    async with services.database.connection() as connection:
        await get_rollout(connection, rollout_id)
        found = await rollouts.measurements(connection, rollout_id, after, limit)
        return [MeasurementRead.model_validate(each) for each in found]


@router.post("/rollouts/{rollout_id}/{wish}", status_code=status.HTTP_202_ACCEPTED)
async def request_rollout(
    rollout_id: str, wish: Literal["pause", "resume"], services: World, caller: Caller
) -> RolloutRead:
    """Leave a wish for the rollout's run. To abort, file a proposal with the tool ``abort``."""
    await acting.request_rollout(services, caller, rollout_id, wish)
    async with services.database.connection() as connection:
        return await get_rollout(connection, rollout_id)


@router.get("/interactions")
async def list_interactions(
    services: World,
    use_case: str | None = None,
    release_id: str | None = None,
    kind: InteractionKind | None = None,
    outcome: InteractionStatus | None = None,
    limit: int = Limit,
) -> list[InteractionRead]:
    """Logged requests, newest first."""
    async with services.database.connection() as connection:
        found = await interactions.recent(
            connection, use_case=use_case, release_id=release_id, kind=kind, status=outcome, limit=limit
        )
        return [InteractionRead.model_validate(each) for each in found]


@router.get("/incidents")
async def list_incidents(
    services: World, use_case: str | None = None, limit: int = Limit
) -> list[IncidentRead]:
    """Findings with the intervention taken, newest first."""
    async with services.database.connection() as connection:
        found = await interactions.list_incidents(connection, use_case, limit=limit)
        return [IncidentRead.model_validate(each) for each in found]
