"""What people may set going through the API, the console or the chat: each checked, done and audited.

Nothing here acts on models or routes by itself: whatever does is filed as a proposal, which policy judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meta_agent import serving
from meta_agent.access import Identity, hash_password
from meta_agent.reading.fleet import get_use_case
from meta_agent.reading.models import UserCreated, UserRead
from meta_agent.refusals import Refusal, not_found
from meta_agent.services import Services
from pipelines import approvals
from storage import audit, flags, identities, proposals, rollouts
from storage.api_keys import new_secret
from storage.proposals import Proposal
from storage.vocabulary import ApprovalWord, Role
from tools.contract import ToolArgumentsError, UnknownToolError
from tools.propose import propose


async def file_proposal(
    services: Services, identity: Identity, *, tool: str, arguments: Mapping[str, Any], reason: str
) -> Proposal:
    """File a proposal as this caller."""
    identity.require(Role.OPERATOR)
    if isinstance(arguments.get("use_case"), str):
        async with services.database.connection() as connection:
            await get_use_case(connection, arguments["use_case"])
    try:
        return await propose(
            services.database,
            services.policy,
            tool=tool,
            arguments=arguments,
            proposer=identity.actor,
            reason=reason.strip() or f"asked for by {identity.name}",
        )
    except UnknownToolError as error:
        raise Refusal(422, "unknown_tool", str(error)) from error
    except (ToolArgumentsError, ValueError) as error:
        raise Refusal(422, "invalid_arguments", str(error)) from error


async def speak(
    services: Services,
    identity: Identity,
    proposal_id: str,
    *,
    word: ApprovalWord,
    binding_digest: str,
    comment: str | None,
) -> Proposal:
    """Give a person's word on one exact proposal.

    ``binding_digest`` is what the person saw: when the judged state has moved since, the word is refused.
    """
    identity.require(Role.APPROVER if word is ApprovalWord.APPROVE else Role.OPERATOR)
    if identity.speaks_for is None:
        raise Refusal(
            403,
            "person_required",
            "This key acts as nobody. A word on a proposal is a person's; use such a key.",
        )
    async with services.database.connection() as connection:
        found = await proposals.find(connection, proposal_id)
    if found is None:
        raise not_found("proposal", proposal_id)
    try:
        return await approvals.speak(
            services.database,
            proposal_id,
            approver=identity.speaks_for,
            role=identity.role,
            word=word,
            binding_digest=binding_digest,
            comment=(comment or "").strip() or None,
        )
    except approvals.ApprovalRefused as error:
        raise Refusal(409, "approval_refused", _sentence(str(error))) from error


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


async def request_rollout(services: Services, identity: Identity, rollout_id: str, wish: str) -> None:
    """Leave a wish (pause, resume) for the rollout's run to take."""
    identity.require(Role.OPERATOR)
    async with services.database.transaction() as connection:
        found = await rollouts.find(connection, rollout_id)
        if found is None:
            raise not_found("rollout", rollout_id)
        if not await rollouts.request(connection, rollout_id, wish):
            raise Refusal(409, "rollout_ended", f"The rollout has ended ({found.state}); it cannot {wish}.")
        await audit.append(
            connection,
            actor=identity.actor,
            event=f"rollout.{wish}_requested",
            subject=rollout_id,
            data={"use_case": found.use_case, "state": found.state},
        )


async def change_serving(services: Services, identity: Identity, name: str, patch: Mapping[str, Any]) -> None:
    """Change the rules by which a use case is served. What answers users is an approver's affair."""
    identity.require(Role.APPROVER)
    async with services.database.transaction() as connection:
        await get_use_case(connection, name)
        try:
            await serving.change(connection, services.settings, name, patch, actor=identity.actor)
        except serving.ServingError as error:
            raise Refusal(422, "invalid_serving", _sentence(str(error))) from error


async def set_agent_paused(services: Services, identity: Identity, paused: bool) -> None:
    """Stop the agent from acting by itself, or let it act again. People's own proposals go on."""
    identity.require(Role.OPERATOR)
    async with services.database.transaction() as connection:
        await flags.put(connection, flags.AGENT_PAUSED, paused, identity.name)
        await audit.append(
            connection,
            actor=identity.actor,
            event="agent.paused" if paused else "agent.resumed",
            subject="agent",
            data={},
        )


async def create_user(
    services: Services, identity: Identity, *, name: str, role: Role, password: str | None
) -> UserCreated:
    """A new operator; a password that was made here is in the answer and nowhere else."""
    identity.require(Role.ADMIN)
    chosen = password or new_secret()
    hashed = await asyncio.to_thread(hash_password, chosen)
    async with services.database.transaction() as connection:
        if await identities.find_user(connection, name) is not None:
            raise Refusal(409, "user_exists", f"There is an operator {name} already.")
        await identities.ensure_user(connection, name=name, password_hash=hashed, role=role)
        await audit.append(
            connection, actor=identity.actor, event="user.created", subject=name, data={"role": role}
        )
    return UserCreated(name=name, role=role, disabled_at=None, password=None if password else chosen)


async def change_user(
    services: Services,
    identity: Identity,
    name: str,
    *,
    role: Role | None = None,
    password: str | None = None,
    disabled: bool | None = None,
) -> UserRead:
    """Change an operator's role or password, or shut them out. One's own password needs no admin."""
    if role is not None or disabled is not None or name != identity.name:
        identity.require(Role.ADMIN)
    if name == identity.name and (disabled or role is not None):
        raise Refusal(422, "own_account", "Nobody changes their own role or shuts themselves out.")
    hashed = await asyncio.to_thread(hash_password, password) if password else None
    async with services.database.transaction() as connection:
        changed = await identities.change_user(
            connection, name, role=role, password_hash=hashed, disabled=disabled
        )
        if not changed:
            raise Refusal(404, "user_not_found", f"There is no operator {name}.")
        await audit.append(
            connection,
            actor=identity.actor,
            event="user.changed",
            subject=name,
            data={"role": role, "disabled": disabled, "password": "changed" if hashed else None},
        )
        found = await identities.find_user(connection, name)
    return UserRead.model_validate(found)
