"""What people may set going through the API, the console or the chat: each checked, done and audited.

Nothing here acts on models or routes by itself: whatever does is filed as a proposal, which policy judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from meta_agent.access import Identity, hash_password
from meta_agent.reading.fleet import get_use_case
from meta_agent.reading.models import KeyCreated, KeyRead, UserCreated, UserRead
from meta_agent.refusals import Refusal, not_found
from meta_agent.services import Services
from pipelines import approvals
from storage import audit, flags, identities, proposals, rollouts
from storage.clock import now
from storage.ids import new_id
from storage.proposals import Proposal
from storage.vocabulary import ApprovalWord, Role
from tools.contract import ToolArgumentsError, UnknownToolError
from tools.propose import propose

#: What a key may be given. ``infer`` opens the gateway, the others the control plane.
SCOPES = ("infer", "pin", "evaluate", "read", "operate", "approve", "admin")


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


async def create_key(
    services: Services,
    identity: Identity,
    *,
    name: str,
    scopes: Sequence[str],
    use_cases: Sequence[str] | None,
    acts_as: str | None,
    expires_at: datetime | None,
) -> KeyCreated:
    """A new key; its secret is in the answer and nowhere else."""
    identity.require(Role.ADMIN)
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise Refusal(
            422, "unknown_scope", f"Scopes are {', '.join(SCOPES)}; not {', '.join(unknown) or 'none'}."
        )
    if acts_as is None and set(scopes) & {"operate", "approve", "admin"}:
        raise Refusal(
            422,
            "nobody_to_act_as",
            "A key that may act needs an operator to act as: otherwise nobody could be held to what it did.",
        )
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now()):
        raise Refusal(422, "expiry_in_the_past", "expires_at must carry a time zone and lie in the future.")
    key_id, secret = new_id("key").removeprefix("key_"), identities.new_secret()
    async with services.database.transaction() as connection:
        if acts_as is not None and await identities.find_user(connection, acts_as) is None:
            raise Refusal(422, "unknown_user", f"There is no operator {acts_as!r} for the key to act as.")
        token = await identities.ensure_key(
            connection,
            key_id=key_id,
            secret=secret,
            name=name,
            scopes=scopes,
            use_cases=use_cases,
            acts_as=acts_as,
            expires_at=expires_at,
        )
        await audit.append(
            connection,
            actor=identity.actor,
            event="key.created",
            subject=key_id,
            data={"name": name, "scopes": sorted(scopes), "acts_as": acts_as},
        )
        created = next(key for key in await identities.list_keys(connection) if key.id == key_id)
    return KeyCreated(**KeyRead.model_validate(created).model_dump(), key=token)


async def create_user(
    services: Services, identity: Identity, *, name: str, role: Role, password: str | None
) -> UserCreated:
    """A new operator; a password that was made here is in the answer and nowhere else."""
    identity.require(Role.ADMIN)
    chosen = password or identities.new_secret()
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


async def revoke_key(services: Services, identity: Identity, key_id: str) -> None:
    """Make a key worthless."""
    identity.require(Role.ADMIN)
    async with services.database.transaction() as connection:
        if not await identities.revoke_key(connection, key_id):
            raise not_found("key", key_id)
        await audit.append(connection, actor=identity.actor, event="key.revoked", subject=key_id, data={})
