"""Proposals, approvals, decisions, the agent, the policy and the audit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Query, status
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel, ConfigDict, Field

from meta_agent import acting
from meta_agent.callers import Caller, World
from meta_agent.reading.governance import get_proposal, list_waiting, read_agent, read_waiting
from meta_agent.reading.models import (
    AgentRead,
    AuditRead,
    CycleRead,
    DecisionRead,
    ProposalRead,
    VerificationRead,
    WaitingRead,
)
from storage import audit, decisions, proposals
from storage.vocabulary import ApprovalWord, ProposalStatus

router = APIRouter(prefix="/api/v1", tags=["governance"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProposalCreate(_Body):
    """What is wanted, by which tool."""

    tool: str = Field(max_length=50)
    arguments: dict[str, Any] = {}
    reason: str = Field("", max_length=2000)


class ApprovalCreate(_Body):
    """A word on exactly the proposal that was read."""

    proposal_id: str = Field(max_length=100)
    word: ApprovalWord
    binding_digest: str = Field(max_length=200, description="of the proposal as it was read")
    comment: str | None = Field(None, max_length=2000)


@router.get("/proposals")
async def list_proposals(
    services: World,
    use_case: str | None = None,
    tool: str | None = None,
    state: ProposalStatus | None = None,
    limit: int = Query(50, ge=1, le=1000),
) -> list[ProposalRead]:
    """Proposals, newest first."""
    async with services.database.connection() as connection:
        found = await proposals.list_proposals(
            connection, statuses=[state] if state else None, use_case=use_case, tool=tool, limit=limit
        )
        return [ProposalRead.model_validate(each) for each in found]


@router.get("/proposals/{proposal_id}")
async def one_proposal(proposal_id: str, services: World) -> WaitingRead:
    """One proposal, with the words spoken on it."""
    async with services.database.connection() as connection:
        return await read_waiting(connection, await get_proposal(connection, proposal_id))


@router.post("/proposals", status_code=status.HTTP_201_CREATED)
async def create_proposal(body: ProposalCreate, services: World, caller: Caller) -> ProposalRead:
    """File a proposal; policy judges it at once, and again next to the effect."""
    filed = await acting.file_proposal(
        services, caller, tool=body.tool, arguments=body.arguments, reason=body.reason
    )
    return ProposalRead.model_validate(filed)


@router.get("/approvals")
async def list_approvals(services: World) -> list[WaitingRead]:
    """The proposals that wait for a person, the longest waiting first."""
    async with services.database.connection() as connection:
        return await list_waiting(connection)


@router.post("/approvals", status_code=status.HTTP_201_CREATED)
async def create_approval(body: ApprovalCreate, services: World, caller: Caller) -> ProposalRead:
    """Approve or reject; 409 with the reason when the word is not taken."""
    spoken = await acting.speak(
        services,
        caller,
        body.proposal_id,
        word=body.word,
        binding_digest=body.binding_digest,
        comment=body.comment,
    )
    return ProposalRead.model_validate(spoken)


@router.get("/agent")
async def agent(services: World) -> AgentRead:
    """What the agent did and will do next."""
    async with services.database.connection() as connection:
        return await read_agent(connection, services.settings)


@router.post("/agent/{wish}")
async def set_agent(wish: Literal["pause", "resume"], services: World, caller: Caller) -> AgentRead:
    """Stop the agent from acting by itself, or let it act again."""
    await acting.set_agent_paused(services, caller, wish == "pause")
    async with services.database.connection() as connection:
        return await read_agent(connection, services.settings)


@router.get("/cycles")
async def list_cycles(services: World, limit: int = Query(50, ge=1, le=1000)) -> list[CycleRead]:
    """The agent's cycles, newest first."""
    async with services.database.connection() as connection:
        return [CycleRead.model_validate(each) for each in await decisions.list_cycles(connection, limit)]


@router.get("/decisions")
async def list_decisions(
    services: World, use_case: str | None = None, limit: int = Query(50, ge=1, le=1000)
) -> list[DecisionRead]:
    """Decisions, newest first."""
    async with services.database.connection() as connection:
        found = await decisions.list_decisions(connection, use_case=use_case, limit=limit)
        return [DecisionRead.model_validate(each) for each in found]


@router.get("/policies")
async def policies(services: World) -> dict[str, Any]:
    """The effective policy with its digest, every override resolved."""
    answer: dict[str, Any] = jsonable_encoder(asdict(services.policy))
    return answer | {"digest": services.policy.digest}


@router.get("/audit")
async def list_audit(
    services: World,
    subject: str | None = None,
    event: str | None = None,
    before: int | None = Query(None, ge=1, le=2**63 - 1),
    limit: int = Query(100, ge=1, le=1000),
) -> list[AuditRead]:
    """Audit rows, newest first; ``before`` is the sequence to page from."""
    async with services.database.connection() as connection:
        found = await audit.list_rows(connection, subject=subject, event=event, before=before, limit=limit)
        return [AuditRead.model_validate(each) for each in found]


@router.get("/audit/verify")
async def verify_audit(services: World) -> VerificationRead:
    """Walk the chain from its beginning and recompute every hash."""
    async with services.database.connection() as connection:
        return VerificationRead.model_validate(await audit.verify(connection))
