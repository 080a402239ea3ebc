"""Whether the process lives, and whether it can answer."""

from __future__ import annotations

from fastapi import APIRouter

from meta_agent.callers import World
from meta_agent.refusals import Refusal
from storage import events
from storage.database import DatabaseUnavailable

router = APIRouter(prefix="/healthz", tags=["health"])


@router.get("/live", summary="The process runs")
async def live() -> dict[str, str]:
    """Says nothing of the database."""
    return {"status": "ok"}


@router.get("/ready", summary="The process can answer")
async def ready(services: World) -> dict[str, str]:
    """The database answers, and has our tables."""
    try:
        async with services.database.connection() as connection:
            await events.last_id(connection)
    except DatabaseUnavailable as error:
        raise Refusal(503, "database_unavailable", "The database does not answer.") from error
    return {"status": "ok"}
