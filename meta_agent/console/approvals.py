"""The approval queue and one proposal in full, written by code from rows and never by a model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from meta_agent import acting
from meta_agent.access import Identity
from meta_agent.callers import Caller, World
from meta_agent.console.rendering import page, see
from meta_agent.reading.fleet import read_route
from meta_agent.reading.governance import get_proposal, list_waiting, read_waiting
from meta_agent.reading.models import WaitingRead
from meta_agent.refusals import Refusal
from meta_agent.services import Services
from storage import decisions, deployments, evaluations, proposals, registry, rollouts, use_cases
from storage.database import Connection
from storage.vocabulary import ApprovalWord, Role

router = APIRouter()


async def _queue(services: Services) -> dict[str, Any]:
    async with services.database.connection() as connection:
        recent = await proposals.list_proposals(connection, limit=50)
        return {
            "queue": await list_waiting(connection),
            "recent": [each for each in recent if each.status != "waiting"][:30],
        }


@router.get("/approvals")
async def queue(request: Request, services: World, caller: Caller) -> Response:
    """What waits, and what became of the proposals before."""
    return await page(request, services, caller, "approvals.html", **await _queue(services))


@router.get("/parts/approvals")
async def queue_part(request: Request, services: World, caller: Caller) -> Response:
    """The same, without its frame."""
    return await page(request, services, caller, "parts/approvals.html", **await _queue(services))


async def _subject(connection: Connection, proposal: WaitingRead) -> dict[str, Any]:
    """What the arguments stand for: looked up by id, never taken from the proposer's words."""
    arguments, found = (
        proposal.arguments,
        dict[str, Any](release=None, offering=None, rollout=None, evaluation=None),
    )
    if "release_id" in arguments:
        found["release"] = await deployments.find_release(connection, str(arguments["release_id"]))
    if "offering_id" in arguments:
        found["offering"] = await registry.find_offering(connection, str(arguments["offering_id"]))
    if "rollout_id" in arguments:
        found["rollout"] = await rollouts.find(connection, str(arguments["rollout_id"]))
    if found["release"] is not None and found["release"].evaluation_id:
        found["evaluation"] = await evaluations.find(connection, found["release"].evaluation_id)
    return found


async def _facts(services: Services, caller: Identity, proposal_id: str) -> dict[str, Any]:
    async with services.database.connection() as connection:
        proposal = await read_waiting(connection, await get_proposal(connection, proposal_id))
        use_case = await use_cases.find(connection, proposal.use_case) if proposal.use_case else None
        route = (await read_route(connection, use_case.name, 1)).current if use_case else None
        stable = next((arm for arm in route.arms if arm.arm == "stable"), None) if route else None
        back = (
            await deployments.previous_stable(connection, use_case.name, than=stable.release_id)
            if use_case and stable
            else None
        )
        stable_release = await deployments.find_release(connection, stable.release_id) if stable else None
        return {
            "proposal": proposal,
            "use_case": use_case,
            "stable": stable_release,
            "back": back,
            "decisions": await decisions.list_decisions(connection, proposal_id=proposal.id, limit=5),
            "checks": (proposal.verdict or {}).get("checks") or [],
            "may_approve": _may_approve(proposal, caller),
            "is_proposer": proposal.proposer == caller.actor,
            **await _subject(connection, proposal),
        }


def _may_approve(proposal: WaitingRead, caller: Identity) -> bool:
    roles = proposal.roles or [Role.APPROVER, Role.ADMIN]
    return caller.may(Role.APPROVER) and caller.role in roles and proposal.proposer != caller.actor


@router.get("/approvals/{proposal_id}")
async def one(proposal_id: str, request: Request, services: World, caller: Caller) -> Response:
    """One proposal: risk, evidence against its limits, what would change, and the form."""
    facts = await _facts(services, caller, proposal_id)
    return await page(request, services, caller, "approval.html", problem=None, **facts)


@router.get("/parts/approvals/{proposal_id}")
async def one_part(proposal_id: str, request: Request, services: World, caller: Caller) -> Response:
    """Where the proposal stands by now."""
    facts = await _facts(services, caller, proposal_id)
    return await page(request, services, caller, "parts/proposal_state.html", **facts)


@router.post("/approvals/{proposal_id}")
async def speak(
    proposal_id: str,
    request: Request,
    services: World,
    caller: Caller,
    word: Annotated[ApprovalWord, Form()],
    binding_digest: Annotated[str, Form(max_length=200)],
    comment: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Give a word; what is refused is said on the page."""
    try:
        await acting.speak(
            services,
            caller,
            proposal_id,
            word=word,
            binding_digest=binding_digest,
            comment=comment,
        )
    except Refusal as refusal:
        if refusal.status != 409:
            raise
        facts = await _facts(services, caller, proposal_id)
        return await page(
            request, services, caller, "approval.html", status=409, problem=refusal.message, **facts
        )
    return see(f"/approvals/{proposal_id}", done="approved" if word is ApprovalWord.APPROVE else "rejected")
