"""Rollouts: the list, and one with its steps, chart, verdicts and buttons."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from meta_agent import acting
from meta_agent.callers import Caller, World
from meta_agent.console.rendering import page, see
from meta_agent.reading.fleet import get_rollout, read_rollouts, read_route
from meta_agent.services import Services
from storage import audit, interactions, rollouts

router = APIRouter()

_FINAL = ("promoted", "rolled_back", "aborted")


async def _list(services: Services) -> dict[str, Any]:
    async with services.database.connection() as connection:
        return {
            "rollouts": await read_rollouts(connection, await rollouts.list_rollouts(connection, limit=100))
        }


@router.get("/rollouts")
async def listing(request: Request, services: World, caller: Caller) -> Response:
    """Every rollout, newest first."""
    return await page(request, services, caller, "rollouts.html", **await _list(services))


@router.get("/parts/rollouts")
async def listing_part(request: Request, services: World, caller: Caller) -> Response:
    """The same, without its frame."""
    return await page(request, services, caller, "parts/rollouts.html", **await _list(services))


async def _facts(services: Services, rollout_id: str) -> dict[str, Any]:
    async with services.database.connection() as connection:
        rollout = await get_rollout(connection, rollout_id)
        route = await read_route(connection, rollout.use_case, limit=200)
        incidents = await interactions.list_incidents(
            connection, rollout.use_case, since=rollout.created_at, limit=200
        )
        return {
            "rollout": rollout,
            "final": rollout.state in _FINAL,
            "route": route.current,
            "history": [each for each in route.history if each.created_at >= rollout.created_at][:30],
            "incidents": [each for each in incidents if each.rollout_id == rollout_id][:20],
            "trail": await audit.list_rows(connection, subject=rollout_id, limit=30),
        }


@router.get("/rollouts/{rollout_id}")
async def one(rollout_id: str, request: Request, services: World, caller: Caller) -> Response:
    """One rollout."""
    return await page(request, services, caller, "rollout.html", **await _facts(services, rollout_id))


@router.get("/parts/rollouts/{rollout_id}/{part}")
async def one_part(
    rollout_id: str, part: Literal["state", "records"], request: Request, services: World, caller: Caller
) -> Response:
    """A section of the page; the chart is left alone."""
    facts = await _facts(services, rollout_id)
    return await page(request, services, caller, f"parts/rollout_{part}.html", **facts)


@router.post("/rollouts/{rollout_id}/{wish}")
async def wish(
    rollout_id: str,
    wish: Literal["pause", "resume", "abort"],
    services: World,
    caller: Caller,
    reason: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Pause and resume are wishes to the run; an abort is a proposal, which policy lets through at once."""
    if wish != "abort":
        await acting.request_rollout(services, caller, rollout_id, wish)
        return see(f"/rollouts/{rollout_id}", done=wish)
    await acting.file_proposal(
        services, caller, tool="abort", arguments={"rollout_id": rollout_id}, reason=reason
    )
    return see(f"/rollouts/{rollout_id}", done="filed")
