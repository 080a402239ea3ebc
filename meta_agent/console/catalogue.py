"""Models: the catalogue, how candidates rank for a use case, and evaluations case by case."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from meta_agent import acting
from meta_agent.callers import Caller, World
from meta_agent.console.rendering import page, see
from meta_agent.reading.fleet import served
from meta_agent.reading.governance import get_evaluation
from meta_agent.services import Services
from storage import evaluations, registry, use_cases

router = APIRouter()

_PAGE = 25


async def _catalogue(
    services: Services, search: str, source: str, reachable: bool, offset: int
) -> dict[str, Any]:
    async with services.database.connection() as connection:
        found = await registry.list_offerings(
            connection,
            search=search or None,
            source=source or None,
            reachable=True if reachable else None,
            limit=_PAGE + 1,
            offset=offset,
        )
    return {
        "offerings": found[:_PAGE],
        "following": offset + _PAGE if len(found) > _PAGE else None,
        "search": search,
        "source": source,
        "reachable": reachable,
        "offset": offset,
    }


Search = Annotated[str, Query(max_length=200)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]


@router.get("/models")
async def models(
    request: Request,
    services: World,
    caller: Caller,
    search: Search = "",
    source: Search = "",
    reachable: bool = False,
    offset: Offset = 0,
    use_case: Search = "",
) -> Response:
    """The catalogue, and the ranking of one use case."""
    facts = await _catalogue(services, search, source, reachable, offset)
    async with services.database.connection() as connection:
        known = await use_cases.list_all(connection)
        chosen = next((each for each in known if each.name == use_case), known[0] if known else None)
        ranking = await registry.latest_ranking(connection, chosen.name) if chosen else None
        changes = await registry.changes(connection, limit=12)
        changed = {
            each.offering_id: await registry.find_offering(connection, each.offering_id) for each in changes
        }
        facts |= {
            "use_cases": known,
            "chosen": chosen,
            "ranking": ranking,
            "sources": await registry.list_sources(connection),
            "changes": changes,
            "changed": changed,
            "total": await registry.count_offerings(connection),
        }
    return await page(request, services, caller, "models.html", **facts)


@router.get("/parts/offerings")
async def offerings_part(
    request: Request,
    services: World,
    caller: Caller,
    search: Search = "",
    source: Search = "",
    reachable: bool = False,
    offset: Offset = 0,
) -> Response:
    """The catalogue's table, as one types."""
    facts = await _catalogue(services, search, source, reachable, offset)
    return await page(request, services, caller, "parts/offerings.html", **facts)


@router.post("/models/test")
async def test_offering(
    services: World,
    caller: Caller,
    use_case: Annotated[str, Form(max_length=200)],
    offering_id: Annotated[str, Form(max_length=200)],
) -> Response:
    """File a proposal to evaluate an offering."""
    arguments = {"use_case": use_case, "offering_id": offering_id}
    filed = await acting.file_proposal(services, caller, tool="test", arguments=arguments, reason="")
    return see(f"/approvals/{filed.id}", done="filed")


@router.get("/evaluations")
async def listing(request: Request, services: World, caller: Caller) -> Response:
    """Every evaluation, newest first."""
    async with services.database.connection() as connection:
        found = await evaluations.list_evaluations(connection, limit=100)
        releases = await served(
            connection, {each for row in found for each in (row.candidate_release_id, row.stable_release_id)}
        )
    return await page(request, services, caller, "evaluations.html", evaluations=found, releases=releases)


@router.get("/evaluations/{evaluation_id}")
async def one(evaluation_id: str, request: Request, services: World, caller: Caller) -> Response:
    """One evaluation: the numbers, then its cases, worst first."""
    async with services.database.connection() as connection:
        evaluation = await get_evaluation(connection, evaluation_id)
        releases = await served(connection, {evaluation.candidate_release_id, evaluation.stable_release_id})
    facts: dict[str, Any] = {
        "evaluation": evaluation,
        "candidate": releases.get(evaluation.candidate_release_id),
        "stable": releases.get(evaluation.stable_release_id),
    }
    return await page(request, services, caller, "evaluation.html", **facts)
