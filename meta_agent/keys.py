"""Keys of applications and machines: made, changed, given a new secret, revoked. Admins only, all audited.

A secret is in the answer to whoever made it and nowhere else: not in the database, the audit or a log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from meta_agent.access import Identity
from meta_agent.bootstrap import INTERNAL_KEYS
from meta_agent.reading.models import KeyCreated, KeyRead
from meta_agent.refusals import Refusal, not_found
from meta_agent.services import Services
from meta_agent.serving_settings import LimitsSettings
from storage import audit, identities
from storage.api_keys import new_secret
from storage.clock import now
from storage.database import Connection
from storage.identities import ApiKey
from storage.ids import new_id
from storage.vocabulary import Role

#: What a key may be given. The first five open the gateway, the others the control plane.
SCOPES = ("infer", "inspect", "pin", "evaluate", "route", "read", "operate", "approve", "admin")


async def create_key(
    services: Services,
    identity: Identity,
    *,
    name: str,
    scopes: Sequence[str],
    use_cases: Sequence[str] | None,
    acts_as: str | None,
    expires_at: datetime | None,
    limits: LimitsSettings | None,
) -> KeyCreated:
    """A new key."""
    identity.require(Role.ADMIN)
    _check_scopes(scopes, acts_as)
    _check_expiry(expires_at)
    given = limits.model_dump(mode="json", exclude_none=True, exclude_unset=True) if limits else {}
    key_id, secret = new_id("key").removeprefix("key_"), new_secret()
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
            limits=given,
        )
        made = {"name": name, "scopes": sorted(scopes), "acts_as": acts_as, "limits": given}
        await _record(connection, identity, "key.created", key_id, made)
        created = await _find(connection, key_id)
    return KeyCreated(**KeyRead.model_validate(created).model_dump(), key=token)


def _check_scopes(scopes: Sequence[str], acts_as: str | None) -> None:
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


def _check_expiry(expires_at: datetime | None) -> None:
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now()):
        raise Refusal(422, "expiry_in_the_past", "expires_at must carry a time zone and lie in the future.")


async def change_key(
    services: Services, identity: Identity, key_id: str, changes: Mapping[str, Any]
) -> KeyRead:
    """Change what is given; limits are merged into those there are, and null takes one away."""
    identity.require(Role.ADMIN)
    _refuse_internal(key_id, "changed")
    changes = dict(changes)
    _check_expiry(changes.get("expires_at"))
    async with services.database.transaction() as connection:
        found = await _find(connection, key_id)
        if "limits" in changes:
            merged = {**found.limits, **(changes["limits"] or {})} if changes["limits"] is not None else {}
            changes["limits"] = {name: value for name, value in merged.items() if value is not None}
        await identities.change_key(connection, key_id, changes)
        changed = await _find(connection, key_id)
        if changed != found:
            told = {name: _plain(value) for name, value in changes.items()}
            await _record(connection, identity, "key.changed", key_id, told)
    return KeyRead.model_validate(changed)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


async def rotate_key(services: Services, identity: Identity, key_id: str, grace: timedelta) -> KeyCreated:
    """A new secret; the one before is valid until the grace is over, so that applications can follow."""
    identity.require(Role.ADMIN)
    _refuse_internal(key_id, "rotated")
    async with services.database.transaction() as connection:
        await _find(connection, key_id)
        try:
            token = await identities.rotate_key(connection, key_id, grace=grace)
        except LookupError:
            raise Refusal(
                409, "key_not_valid", f"The key {key_id} is revoked or has expired; make a new one."
            ) from None
        rotated = await _find(connection, key_id)
        until = _plain(rotated.previous_until)
        await _record(connection, identity, "key.rotated", key_id, {"previous_until": until})
    return KeyCreated(**KeyRead.model_validate(rotated).model_dump(), key=token)


async def revoke_key(services: Services, identity: Identity, key_id: str) -> None:
    """Make a key worthless."""
    identity.require(Role.ADMIN)
    async with services.database.transaction() as connection:
        if not await identities.revoke_key(connection, key_id):
            raise not_found("key", key_id)
        await _record(connection, identity, "key.revoked", key_id, {})


async def _find(connection: Connection, key_id: str) -> ApiKey:
    found = await identities.get_key(connection, key_id, lock=True)
    if found is None:
        raise not_found("key", key_id)
    return found


def _refuse_internal(key_id: str, what: str) -> None:
    if key_id in INTERNAL_KEYS:
        raise Refusal(
            422,
            "internal_key",
            f"The key {key_id} follows from the installation's secret and cannot be {what}: "
            "`meta-agent migrate` would bring it back to what it was.",
        )


async def _record(
    connection: Connection, identity: Identity, event: str, key_id: str, data: Mapping[str, Any]
) -> None:
    await audit.append(connection, actor=identity.actor, event=event, subject=key_id, data=data)
