"""What could be used: offerings, their sources and changes, rankings and evaluations."""

from __future__ import annotations

from fastapi import APIRouter, Query

from meta_agent.callers import World
from meta_agent.reading.fleet import get_use_case
from meta_agent.reading.governance import get_evaluation
from meta_agent.reading.models import (
    EvaluationDetail,
    EvaluationRead,
    OfferingChangeRead,
    OfferingRead,
    RankingRead,
    SourceRead,
)
from meta_agent.refusals import Refusal
from storage import evaluations, registry

router = APIRouter(prefix="/api/v1", tags=["catalogue"])


@router.get("/offerings")
async def list_offerings(
    services: World,
    search: str | None = Query(None, max_length=200),
    source: str | None = None,
    reachable: bool | None = None,
    limit: int = Query(100, ge=1, le=1000),
    offset: int = Query(0, ge=0, le=1_000_000),
) -> list[OfferingRead]:
    """Offerings, reachable ones first; fewer than ``limit`` means the end."""
    async with services.database.connection() as connection:
        found = await registry.list_offerings(
            connection, source=source, search=search, reachable=reachable, limit=limit, offset=offset
        )
        return [OfferingRead.model_validate(each) for each in found]


@router.get("/offering-changes")
async def list_changes(
    services: World, after: int = Query(0, ge=0, le=2**63 - 1), limit: int = Query(100, ge=1, le=1000)
) -> list[OfferingChangeRead]:
    """What changed, newest first; ``after`` is the id of the newest one known."""
    async with services.database.connection() as connection:
        found = await registry.changes(connection, after=after, limit=limit)
        return [OfferingChangeRead.model_validate(each) for each in found]


@router.get("/sources")
async def list_sources(services: World) -> list[SourceRead]:
    """Where models are discovered."""
    async with services.database.connection() as connection:
        return [SourceRead.model_validate(each) for each in await registry.list_sources(connection)]


@router.get("/rankings/{use_case}")
async def ranking(use_case: str, services: World) -> RankingRead:
    """The newest ranking of a use case."""
    async with services.database.connection() as connection:
        await get_use_case(connection, use_case)
        found = await registry.latest_ranking(connection, use_case)
    if found is None:
        raise Refusal(
            404, "not_ranked", f"{use_case} was not ranked yet; file a proposal with the tool rank."
        )
    return RankingRead.model_validate(found)


@router.get("/evaluations")
async def list_evaluations(
    services: World, use_case: str | None = None, limit: int = Query(50, ge=1, le=1000)
) -> list[EvaluationRead]:
    """Evaluations, newest first."""
    async with services.database.connection() as connection:
        found = await evaluations.list_evaluations(connection, use_case, limit)
        return [EvaluationRead.model_validate(each) for each in found]


@router.get("/evaluations/{evaluation_id}")
async def one_evaluation(evaluation_id: str, services: World) -> EvaluationDetail:
    """One evaluation with its cases, worst first."""
    async with services.database.connection() as connection:
        return await get_evaluation(connection, evaluation_id)
