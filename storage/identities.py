"""Keys, operators and their sessions. Secrets arrive here to be hashed and are never stored."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.api_keys import format_key, new_secret, sha256, split_key
from storage.database import notify
from storage.routes import CHANNEL as ROUTES_CHANNEL
from storage.rows import columns_for, load, load_optional
from storage.servings import checked_limits
from storage.tables.identity import api_keys, sessions, users
from storage.vocabulary import Role


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. The secret is shown once, when it is made."""

    id: str
    name: str
    scopes: list[str]
    use_cases: list[str] | None
    acts_as: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    limits: dict[str, Any]  #: as ``storage.routing.Limits``; what is absent is not limited
    previous_until: datetime | None  #: until when the secret before the last rotation is taken as well


@dataclass(frozen=True, slots=True)
class User:
    """An operator."""

    name: str
    password_hash: str
    role: str
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Session:
    """A log-in of the console."""

    user_name: str
    csrf_token: str
    expires_at: datetime


async def ensure_key(
    connection: AsyncConnection,
    *,
    key_id: str,
    secret: str,
    name: str,
    scopes: Sequence[str],
    use_cases: Sequence[str] | None = None,
    acts_as: str | None = None,
    expires_at: datetime | None = None,
    limits: Mapping[str, Any] | None = None,
) -> str:
    """Create a key, or bring one to this secret and these rights; returns it as a client sends it.

    ``key_id`` holds letters, digits and hyphens only. A secret that another one replaces here is worthless
    at once. Raises ValueError for an id or limits that cannot be read.
    """
    if not key_id.replace("-", "").isalnum():
        raise ValueError(f"a key's id holds letters, digits and hyphens, not {key_id!r}")
    values = {
        "name": name,
        "secret_sha256": sha256(secret),
        "scopes": sorted(scopes),
        "use_cases": None if use_cases is None else sorted(use_cases),
        "acts_as": acts_as,
        "expires_at": expires_at,
        "revoked_at": None,
        "limits": checked_limits(limits or {}),
    }
    statement = upsert(api_keys).values(id=key_id, created_at=clock.now(), **values)
    same = api_keys.c.secret_sha256 == statement.excluded.secret_sha256
    previous = {
        name: case((same, api_keys.c[name]), else_=None) for name in ("previous_sha256", "previous_until")
    }
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={**values, **previous})
    )
    await notify(connection, ROUTES_CHANNEL, "keys")
    return format_key(key_id, secret)


async def rotate_key(connection: AsyncConnection, key_id: str, *, grace: timedelta) -> str:
    """Give a key a new secret; the old one is taken as well until the grace is over, none before it.

    Returns the key as a client sends it from now on. Raises LookupError if there is no valid key of that id.
    """
    secret, moment = new_secret(), clock.now()
    statement = (
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .where(api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > moment))
        .values(
            previous_sha256=api_keys.c.secret_sha256,
            previous_until=moment + grace,
            secret_sha256=sha256(secret),
        )
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise LookupError(f"there is no valid key {key_id!r}")
    await notify(connection, ROUTES_CHANNEL, "keys")
    return format_key(key_id, secret)


async def change_key(connection: AsyncConnection, key_id: str, changes: Mapping[str, Any]) -> bool:
    """Change name, use_cases, expires_at or limits of a key; gateways are told. False: there is none.

    Raises ValueError for limits that cannot be read, and for anything else that is to change.
    """
    if unknown := changes.keys() - {"name", "use_cases", "expires_at", "limits"}:
        raise ValueError(f"{', '.join(sorted(unknown))} of a key cannot be changed")
    values = dict(changes)
    if "limits" in values:
        values["limits"] = checked_limits(values["limits"])
    if values.get("use_cases") is not None:
        values["use_cases"] = sorted(values["use_cases"])
    if not values:
        return await get_key(connection, key_id) is not None
    statement = update(api_keys).where(api_keys.c.id == key_id).values(**values)
    await notify(connection, ROUTES_CHANNEL, "keys")
    return (await connection.execute(statement)).rowcount == 1


async def get_key(connection: AsyncConnection, key_id: str, *, lock: bool = False) -> ApiKey | None:
    """The key of that id, valid or not."""
    query = select(*columns_for(ApiKey, api_keys)).where(api_keys.c.id == key_id)
    if lock:
        query = query.with_for_update()
    return load_optional(ApiKey, (await connection.execute(query)).first())


async def revoke_key(connection: AsyncConnection, key_id: str) -> bool:
    """Make a key worthless from now on. False: there is none of that id."""
    statement = update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=clock.now())
    await notify(connection, ROUTES_CHANNEL, "keys")
    return (await connection.execute(statement)).rowcount == 1


async def list_keys(connection: AsyncConnection) -> list[ApiKey]:
    """Every key, by name."""
    query = select(*columns_for(ApiKey, api_keys)).order_by(api_keys.c.name)
    return [load(ApiKey, row) for row in await connection.execute(query)]


async def find_key(connection: AsyncConnection, token: str) -> ApiKey | None:
    """The valid key behind what a client sent."""
    parts = split_key(token)
    if parts is None:
        return None
    moment = clock.now()
    row = (await connection.execute(select(api_keys).where(api_keys.c.id == parts[0]))).first()
    if row is None or not _has_secret(row, parts[1], moment):
        return None
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= moment):
        return None
    return load(ApiKey, row)


def _has_secret(row: Row[Any], secret: str, moment: datetime) -> bool:
    given = sha256(secret)
    if hmac.compare_digest(row.secret_sha256, given):
        return True
    in_grace = row.previous_until is not None and row.previous_until > moment
    return in_grace and hmac.compare_digest(row.previous_sha256, given)


async def ensure_user(
    connection: AsyncConnection, *, name: str, password_hash: str, role: Role, replace: bool = False
) -> None:
    """Create an operator; one that exists keeps its password unless ``replace``."""
    statement = upsert(users).values(
        name=name, password_hash=password_hash, role=role, created_at=clock.now()
    )
    if replace:
        changed = {"password_hash": password_hash, "role": role, "disabled_at": None}
        statement = statement.on_conflict_do_update(index_elements=["name"], set_=changed)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=["name"])
    await connection.execute(statement)


async def change_user(
    connection: AsyncConnection,
    name: str,
    *,
    role: Role | None = None,
    password_hash: str | None = None,
    disabled: bool | None = None,
) -> bool:
    """Change what is given; a new password or a shut-out ends the operator's sessions. False: unknown."""
    values: dict[str, object] = {}
    if role is not None:
        values["role"] = role
    if password_hash is not None:
        values["password_hash"] = password_hash
    if disabled is not None:
        values["disabled_at"] = clock.now() if disabled else None
    if not values:
        return await find_user(connection, name) is not None
    if password_hash is not None or disabled:
        await connection.execute(delete(sessions).where(sessions.c.user_name == name))
    return (
        await connection.execute(update(users).where(users.c.name == name).values(**values))
    ).rowcount == 1


async def find_user(connection: AsyncConnection, name: str) -> User | None:
    """The operator of that name, disabled or not."""
    query = select(*columns_for(User, users)).where(users.c.name == name)
    return load_optional(User, (await connection.execute(query)).first())


async def list_users(connection: AsyncConnection) -> list[User]:
    """Every operator, by name."""
    return [load(User, row) for row in await connection.execute(select(users).order_by(users.c.name))]


async def open_session(connection: AsyncConnection, user_name: str, lifetime: timedelta) -> tuple[str, str]:
    """Log a user in: (session token for the cookie, CSRF token for its forms)."""
    token, csrf_token, moment = secrets.token_urlsafe(32), secrets.token_urlsafe(32), clock.now()
    await connection.execute(delete(sessions).where(sessions.c.expires_at <= moment))
    await connection.execute(
        sessions.insert().values(
            token_sha256=sha256(token),
            user_name=user_name,
            csrf_token=csrf_token,
            created_at=moment,
            expires_at=moment + lifetime,
        )
    )
    return token, csrf_token


async def find_session(connection: AsyncConnection, token: str) -> Session | None:
    """The live session behind a cookie."""
    query = select(*columns_for(Session, sessions)).where(
        sessions.c.token_sha256 == sha256(token), sessions.c.expires_at > clock.now()
    )
    return load_optional(Session, (await connection.execute(query)).first())


async def close_session(connection: AsyncConnection, token: str) -> None:
    """Log out."""
    await connection.execute(delete(sessions).where(sessions.c.token_sha256 == sha256(token)))
