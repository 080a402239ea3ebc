"""The overview, a use case's own page, and the agent's pause."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from meta_agent import acting
from meta_agent.callers import Caller, World
from meta_agent.console.rendering import page, see
from meta_agent.reading.fleet import get_use_case, read_fleet, read_rollouts, read_route
from meta_agent.reading.governance import list_waiting, read_agent
from storage import decisions, deployments, events, interactions, rollouts

router = APIRouter()


async def _facts(services: World) -> dict[str, Any]:
    async with services.database.connection() as connection:
        return {
            "fleet": await read_fleet(connection),
            "agent": await read_agent(connection, services.settings, last=6),
            "decisions": await decisions.list_decisions(connection, limit=6),
            "queue": await list_waiting(connection),
            "events": await events.recent(connection, limit=12),
        }


@router.get("/")
async def overview(request: Request, services: World, caller: Caller) -> Response:
    """The fleet, the agent and what waits."""
    return await page(request, services, caller, "overview.html", **await _facts(services))


@router.get("/parts/overview")
async def overview_part(request: Request, services: World, caller: Caller) -> Response:
    """The same, without its frame."""
    return await page(request, services, caller, "parts/overview.html", **await _facts(services))


@router.get("/parts/header")
async def header_part(request: Request, services: World, caller: Caller) -> Response:
    """The agent's state and the pause button."""
    return await page(request, services, caller, "parts/agent_switch.html")


@router.get("/parts/badge")
async def badge_part(request: Request, services: World, caller: Caller) -> Response:
    """How many approvals wait."""
    return await page(request, services, caller, "parts/badge.html")


@router.post("/agent/{wish}")
async def switch_agent(wish: Literal["pause", "resume"], services: World, caller: Caller) -> Response:
    """Pause or resume the agent."""
    await acting.set_agent_paused(services, caller, wish == "pause")
    return see("/", done=f"{wish}d")


@router.get("/use-cases/{name}")
async def use_case(name: str, request: Request, services: World, caller: Caller) -> Response:
    """One use case: who answers, who did, and what was logged."""
    async with services.database.connection() as connection:
        facts: dict[str, Any] = {
            "use_case": await get_use_case(connection, name),
            "row": next(row for row in (await read_fleet(connection)).rows if row.use_case == name),
            "route": await read_route(connection, name, limit=20),
            "releases": await deployments.list_releases(connection, name, limit=20),
            "interactions": await interactions.recent(connection, use_case=name, limit=25),
            "rollouts": await read_rollouts(connection, await rollouts.list_rollouts(connection, name, 10)),
        }
    return await page(request, services, caller, "use_case.html", **facts)


@router.post("/use-cases/{name}/rollback")
async def roll_back(
    name: str, services: World, caller: Caller, reason: Annotated[str, Form(max_length=2000)] = ""
) -> Response:
    """File a proposal to go back to the release before."""
    filed = await acting.file_proposal(
        services, caller, tool="rollback", arguments={"use_case": name}, reason=reason
    )
    return see(f"/approvals/{filed.id}", done="filed")
