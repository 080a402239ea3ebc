"""What is on record: decisions, incidents and the audit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from meta_agent.callers import Caller, World
from meta_agent.console.rendering import page
from meta_agent.services import Services
from storage import audit, decisions, deployments, interactions, proposals, registry, use_cases
from storage.database import Connection
from storage.decisions import Decision

router = APIRouter()

_PAGE = 50
Filter = Annotated[str, Query(max_length=200)]


async def _decisions(services: Services, use_case: str) -> dict[str, Any]:
    async with services.database.connection() as connection:
        found = await decisions.list_decisions(connection, use_case=use_case or None, limit=60)
        filed = {
            each.proposal_id: await proposals.find(connection, each.proposal_id)
            for each in found
            if each.proposal_id
        }
        return {
            "decisions": found,
            "proposals": filed,
            "names": await _names(connection, found),
            "cycles": await decisions.list_cycles(connection, 15),
            "use_cases": await use_cases.list_all(connection),
            "use_case": use_case,
        }


async def _names(connection: Connection, found: Iterable[Decision]) -> dict[str, str]:
    """What the ids in the actions stand for."""
    names: dict[str, str] = {}
    for decision in found:
        arguments = (decision.action or {}).get("arguments") or {}
        for release_id in {arguments.get("release_id")} - {None, *names}:
            release = await deployments.find_release(connection, str(release_id))
            names |= {str(release_id): f"{release.provider}/{release.model}"} if release else {}
        for offering_id in {arguments.get("offering_id")} - {None, *names}:
            offering = await registry.find_offering(connection, str(offering_id))
            names |= {str(offering_id): f"{offering.provider}/{offering.model}"} if offering else {}
    return names


@router.get("/decisions")
async def decided(request: Request, services: World, caller: Caller, use_case: Filter = "") -> Response:
    """Signal, alternatives, verdict, action and outcome, newest first."""
    return await page(request, services, caller, "decisions.html", **await _decisions(services, use_case))


@router.get("/parts/decisions")
async def decided_part(request: Request, services: World, caller: Caller, use_case: Filter = "") -> Response:
    """The same, without its frame."""
    return await page(
        request, services, caller, "parts/decisions.html", **await _decisions(services, use_case)
    )


@router.get("/incidents")
async def incidents(request: Request, services: World, caller: Caller, use_case: Filter = "") -> Response:
    """Findings with the intervention taken."""
    return await page(request, services, caller, "incidents.html", **await _incidents(services, use_case))


@router.get("/parts/incidents")
async def incidents_part(
    request: Request, services: World, caller: Caller, use_case: Filter = ""
) -> Response:
    """The same, without its frame."""
    return await page(
        request, services, caller, "parts/incidents.html", **await _incidents(services, use_case)
    )


async def _incidents(services: Services, use_case: str) -> dict[str, Any]:
    async with services.database.connection() as connection:
        found = await interactions.list_incidents(connection, use_case or None, limit=100)
        texts = {}
        for each in found[:30]:
            if each.interaction_id:
                texts[each.id] = await interactions.find(connection, each.interaction_id)
        return {
            "incidents": found,
            "texts": texts,
            "use_cases": await use_cases.list_all(connection),
            "use_case": use_case,
        }


async def _audit(services: Services, event: str, subject: str, before: int | None) -> dict[str, Any]:
    async with services.database.connection() as connection:
        found = await audit.list_rows(
            connection,
            event=event.strip() or None,
            subject=subject.strip() or None,
            before=before,
            limit=_PAGE + 1,
        )
    following = found[_PAGE - 1].sequence if len(found) > _PAGE else None
    return {
        "rows": found[:_PAGE],
        "following": following,
        "event": event,
        "subject": subject,
        "before": before,
    }


@router.get("/audit")
async def audit_page(
    request: Request,
    services: World,
    caller: Caller,
    event: Filter = "",
    subject: Filter = "",
    before: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """Who did what, newest first."""
    facts = await _audit(services, event, subject, before)
    return await page(request, services, caller, "audit.html", **facts)


@router.get("/parts/audit/verify")
async def verify(request: Request, services: World, caller: Caller) -> Response:
    """Walk the chain now, and say what was found."""
    async with services.database.connection() as connection:
        found = await audit.verify(connection)
    return await page(request, services, caller, "parts/verification.html", found=found)
