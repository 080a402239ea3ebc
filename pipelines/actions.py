"""From proposal to run: the verdict that counts, given next to the effect and written with it.

Judging and acting are serial over the whole fleet: two proposals that would each fit the budget must not
both pass because they were judged at the same moment.
"""

from __future__ import annotations

from typing import Literal

from pipelines import facts
from pipelines.approvals import person
from pipelines.context import Context
from policies.engine import judge
from policies.verdict import Verdict
from storage import audit, clock, decisions, proposals
from storage.database import Connection, lock_in_transaction
from storage.proposals import Proposal
from storage.vocabulary import ApprovalWord, ProposalStatus, VerdictOutcome

#: What judging says: a status, or that nothing stands in the way any more.
Judged = ProposalStatus | Literal["approved"]

_LOCK = "policy-guard"


async def guard(context: Context, proposal_id: str) -> Judged:
    """Judge a proposal on the facts of now, and count the words of people on it.

    Deciding again is harmless: the answer depends on rows only.
    """
    async with context.database.transaction() as connection:
        await lock_in_transaction(connection, _LOCK)
        return await _judge(connection, context, await _load(connection, proposal_id))


async def execute(context: Context, proposal_id: str) -> ProposalStatus:
    """Judge once more and, if nothing stands in the way, start the run: in one transaction.

    A proposal that is being carried out, or was, stays as it is: the same proposal never runs twice.
    """
    if context.enqueue is None:
        raise RuntimeError("this process cannot start runs: it was given no queue")
    async with context.database.transaction() as connection:
        await lock_in_transaction(connection, _LOCK)
        proposal = await _load(connection, proposal_id)
        judged = await _judge(connection, context, proposal)
        if judged != "approved":
            return judged
        proposal = await _load(connection, proposal_id)  # with the verdict that was given just now
        run_id = await context.enqueue(connection, proposal)
        await proposals.update_proposal(
            connection,
            proposal_id,
            status=ProposalStatus.EXECUTING,
            run_id=run_id,
            started_at=clock.now(),
        )
        await audit.append(
            connection,
            actor=proposal.proposer,
            event="action.started",
            subject=proposal_id,
            data={
                "tool": proposal.tool,
                "arguments": proposal.arguments,
                "use_case": proposal.use_case,
                "verdict": (proposal.verdict or {}).get("outcome"),
                "policy_digest": context.policy.digest,
                "run_id": run_id,
            },
        )
        return ProposalStatus.EXECUTING


async def _load(connection: Connection, proposal_id: str) -> Proposal:
    proposal = await proposals.find(connection, proposal_id, lock=True)
    if proposal is None:
        raise LookupError(f"there is no proposal {proposal_id}")
    return proposal


async def _judge(connection: Connection, context: Context, proposal: Proposal) -> Judged:
    status = ProposalStatus(proposal.status)
    if status.is_final or status is ProposalStatus.EXECUTING:
        return status
    if proposal.expires_at <= clock.now():
        return await _close(connection, proposal, ProposalStatus.EXPIRED, "nobody spoke in time")
    gathered = await facts.gather(connection, proposal)
    verdict = judge(context.policy, proposal.tool, gathered.facts)
    await _keep(connection, context, proposal, verdict, gathered)
    if verdict.outcome is VerdictOutcome.DENY:
        return await _close(connection, proposal, ProposalStatus.DENIED, verdict.why)
    if verdict.outcome is VerdictOutcome.ALLOW or await _agreed(connection, proposal.id, verdict):
        return "approved"
    if status is not ProposalStatus.WAITING:
        await proposals.update_proposal(
            connection, proposal.id, status=ProposalStatus.WAITING, waiting_since=clock.now()
        )
        await _tell(connection, proposal, "proposal.waiting", verdict.why)
    return ProposalStatus.WAITING


async def _keep(
    connection: Connection, context: Context, proposal: Proposal, verdict: Verdict, gathered: facts.Gathered
) -> None:
    stored = {**verdict.to_json(), "facts": gathered.facts.to_json()}
    await proposals.update_proposal(
        connection,
        proposal.id,
        verdict=stored,
        policy_digest=context.policy.digest,
        state_digest=gathered.state_digest,
    )
    await decisions.set_for_proposal(connection, proposal.id, verdict=stored)


async def _agreed(connection: Connection, proposal_id: str, verdict: Verdict) -> bool:
    """Enough distinct people of the right role said yes to exactly this."""
    proposal = await _load(connection, proposal_id)
    people = {
        person(each.approver)
        for each in await proposals.list_approvals(connection, proposal_id)
        if each.word == ApprovalWord.APPROVE
        and each.binding_digest == proposal.binding_digest
        and each.role in verdict.roles
    }
    return len(people - {person(proposal.proposer)}) >= verdict.approvals_needed > 0


async def _close(
    connection: Connection, proposal: Proposal, status: ProposalStatus, why: str
) -> ProposalStatus:
    await proposals.update_proposal(connection, proposal.id, status=status, error=why)
    await decisions.set_for_proposal(connection, proposal.id, outcome={"succeeded": False, "error": why})
    await _tell(connection, proposal, f"proposal.{status}", why)
    return status


async def _tell(connection: Connection, proposal: Proposal, event: str, why: str) -> None:
    await audit.append(
        connection,
        actor="policy",
        event=event,
        subject=proposal.id,
        data={
            "tool": proposal.tool,
            "use_case": proposal.use_case,
            "proposer": proposal.proposer,
            "why": why,
        },
    )
