"""Proposals, and people's words on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import notify
from storage.digests import digest
from storage.ids import new_id
from storage.rows import columns_for, load, load_optional
from storage.tables.governance import approvals, proposals
from storage.vocabulary import ApprovalWord, ProposalStatus

#: The NOTIFY channel that wakes whoever carries proposals on.
CHANNEL = "proposals"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What somebody wants done, by which tool and with which arguments."""

    id: str
    tool: str
    arguments: dict[str, Any]
    arguments_digest: str
    use_case: str | None
    proposer: str
    cycle_id: str | None
    reason: str
    status: str
    verdict: dict[str, Any] | None
    policy_digest: str | None
    state_digest: str | None
    run_id: str | None
    outcome: dict[str, Any] | None
    error: str | None
    created_at: datetime
    waiting_since: datetime | None
    started_at: datetime | None  #: when its run was enqueued
    expires_at: datetime
    ended_at: datetime | None

    @property
    def binding_digest(self) -> str:
        """What an approval binds: tool, arguments, the state it was judged on, and the policy."""
        return digest([self.tool, self.arguments_digest, self.state_digest, self.policy_digest])


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's word on one exact proposal."""

    id: str
    proposal_id: str
    approver: str
    role: str
    word: str
    binding_digest: str
    comment: str | None
    at: datetime


async def create(
    connection: AsyncConnection,
    *,
    tool: str,
    arguments: Mapping[str, Any],
    use_case: str | None,
    proposer: str,
    reason: str,
    expires_in: timedelta,
    cycle_id: str | None = None,
) -> str:
    """A new proposal; whoever carries proposals on is woken at commit."""
    proposal_id, moment = new_id("prop"), clock.now()
    await connection.execute(
        insert(proposals).values(
            id=proposal_id,
            tool=tool,
            arguments=dict(arguments),
            arguments_digest=digest([tool, dict(arguments)]),
            use_case=use_case,
            proposer=proposer,
            cycle_id=cycle_id,
            reason=reason,
            status=ProposalStatus.PROPOSED,
            created_at=moment,
            expires_at=moment + expires_in,
        )
    )
    await notify(connection, CHANNEL, proposal_id)
    return proposal_id


async def find(connection: AsyncConnection, proposal_id: str, *, lock: bool = False) -> Proposal | None:
    """The proposal of that id; locked until the end of the transaction if asked."""
    query = select(*columns_for(Proposal, proposals)).where(proposals.c.id == proposal_id)
    if lock:
        query = query.with_for_update()
    return load_optional(Proposal, (await connection.execute(query)).first())


async def list_proposals(
    connection: AsyncConnection,
    *,
    statuses: Sequence[ProposalStatus] | None = None,
    use_case: str | None = None,
    tool: str | None = None,
    since: datetime | None = None,
    limit: int = 100,
) -> list[Proposal]:
    """Proposals, newest first."""
    query = select(*columns_for(Proposal, proposals)).order_by(proposals.c.created_at.desc()).limit(limit)
    if statuses is not None:
        query = query.where(proposals.c.status.in_(list(statuses)))
    if use_case is not None:
        query = query.where(proposals.c.use_case == use_case)
    if tool is not None:
        query = query.where(proposals.c.tool == tool)
    if since is not None:
        query = query.where(proposals.c.created_at >= since)
    return [load(Proposal, row) for row in await connection.execute(query)]


async def count_executed(
    connection: AsyncConnection, *, tool: str, since: datetime, use_case: str | None = None
) -> int:
    """How often a tool was set to work in a window: what rate limits count."""
    query = (
        select(func.count())
        .select_from(proposals)
        .where(proposals.c.tool == tool, proposals.c.started_at >= since)
    )
    if use_case is not None:
        query = query.where(proposals.c.use_case == use_case)
    return (await connection.execute(query)).scalar_one()


async def update_proposal(connection: AsyncConnection, proposal_id: str, **values: Any) -> None:
    """Move a proposal on. What it asks for never changes: a trigger sees to that."""
    if "status" in values and ProposalStatus(values["status"]).is_final:
        values.setdefault("ended_at", clock.now())
    await connection.execute(update(proposals).where(proposals.c.id == proposal_id).values(**values))


async def finish(
    connection: AsyncConnection,
    proposal_id: str,
    *,
    succeeded: bool,
    outcome: Mapping[str, Any],
    error: str | None = None,
) -> None:
    """Close a proposal that was carried out."""
    status = ProposalStatus.SUCCEEDED if succeeded else ProposalStatus.FAILED
    await update_proposal(connection, proposal_id, status=status, outcome=dict(outcome), error=error)


async def record_approval(
    connection: AsyncConnection,
    *,
    proposal: Proposal,
    approver: str,
    role: str,
    word: ApprovalWord,
    comment: str | None,
) -> bool:
    """Keep a person's word. False: this person has spoken on exactly this, and the first word stands."""
    statement = upsert(approvals).values(
        id=new_id("app"),
        proposal_id=proposal.id,
        approver=approver,
        role=role,
        word=word,
        binding_digest=proposal.binding_digest,
        comment=comment,
        at=clock.now(),
    )
    once = ["proposal_id", "approver", "binding_digest"]
    result = await connection.execute(
        statement.on_conflict_do_nothing(index_elements=once).returning(approvals.c.id)
    )
    await notify(connection, CHANNEL, proposal.id)
    return result.first() is not None


async def list_approvals(connection: AsyncConnection, proposal_id: str) -> list[Approval]:
    """The words on a proposal, oldest first."""
    query = select(*columns_for(Approval, approvals)).where(approvals.c.proposal_id == proposal_id)
    return [load(Approval, row) for row in await connection.execute(query.order_by(approvals.c.at))]
