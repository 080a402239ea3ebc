"""A person's word on a proposal: who may give it, on what exactly, and what it does."""

from __future__ import annotations

import unicodedata

from storage import audit, clock, decisions, proposals
from storage.database import Database, storable
from storage.proposals import Proposal
from storage.vocabulary import ApprovalWord, ProposalStatus, Role


class ApprovalRefused(RuntimeError):  # noqa: N818  # a refusal is an answer, not a fault
    """The word was not taken; the message says why and what to do."""


def person(name: str) -> str:
    """Who somebody is, however the name is spelled: Ann, ann and "user:ann" are one person."""
    return unicodedata.normalize("NFKC", name.removeprefix("user:")).casefold().strip()


async def speak(
    database: Database,
    proposal_id: str,
    *,
    approver: str,
    role: Role,
    word: ApprovalWord,
    binding_digest: str,
    comment: str | None = None,
) -> Proposal:
    """Take a person's word on one exact proposal; a rejection ends it at once.

    The approval binds tool, arguments, judged state and policy: if any of these moves before the action,
    it no longer counts. Raises :class:`ApprovalRefused`.
    """
    comment = None if comment is None else storable(comment)
    async with database.transaction() as connection:
        proposal = await proposals.find(connection, proposal_id, lock=True)
        if proposal is None:
            raise ApprovalRefused(f"there is no proposal {proposal_id}")
        _refuse(proposal, approver, role, word, binding_digest)
        taken = await proposals.record_approval(
            connection, proposal=proposal, approver=approver, role=role, word=word, comment=comment
        )
        if not taken:
            raise ApprovalRefused(f"{approver} has already spoken on this proposal; the first word stands")
        await audit.append(
            connection,
            actor=f"user:{approver}",
            event="approval.given" if word is ApprovalWord.APPROVE else "approval.rejected",
            subject=proposal_id,
            data={
                "tool": proposal.tool,
                "use_case": proposal.use_case,
                "role": role,
                "binding_digest": proposal.binding_digest,
                "comment": comment,
            },
        )
        if word is ApprovalWord.REJECT:
            reason = f"rejected by {approver}" + (f": {comment}" if comment else "")
            await proposals.update_proposal(
                connection, proposal_id, status=ProposalStatus.REJECTED, error=reason
            )
            await decisions.set_for_proposal(
                connection, proposal_id, outcome={"succeeded": False, "error": reason}
            )
        spoken = await proposals.find(connection, proposal_id)
    if spoken is None:
        raise ApprovalRefused(f"there is no proposal {proposal_id}")
    return spoken


def _refuse(proposal: Proposal, approver: str, role: Role, word: ApprovalWord, binding_digest: str) -> None:
    if proposal.status != ProposalStatus.WAITING:
        raise ApprovalRefused(f"this proposal is {proposal.status}, it does not wait for a word")
    if proposal.expires_at <= clock.now():
        raise ApprovalRefused("this proposal has expired; file a new one")
    if binding_digest != proposal.binding_digest:
        raise ApprovalRefused(
            "this is not what stands there now: it was judged anew, or is another proposal; read it again"
        )
    if word is ApprovalWord.REJECT:
        if role.rank < Role.OPERATOR.rank:
            raise ApprovalRefused("a viewer cannot reject; ask an operator")
        return
    if person(proposal.proposer) == person(approver):
        raise ApprovalRefused("whoever proposes cannot approve; ask somebody else")
    roles = (proposal.verdict or {}).get("roles") or [Role.APPROVER, Role.ADMIN]
    if role not in roles:
        raise ApprovalRefused(f"a {role} cannot approve this; it takes one of: {', '.join(roles)}")
