"""Keys, operators and their sessions. Secrets arrive here to be hashed and are never stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.database import notify
from storage.routes import CHANNEL as ROUTES_CHANNEL
from storage.rows import columns_for, load, load_optional
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


def sha256(secret: str) -> str:
    """Hex SHA-256: keys and session tokens are long random strings, so that a fast hash suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """192 random bits, in URL-safe characters without underscores (the separator of keys)."""
    return secrets.token_hex(24)


def format_key(key_id: str, secret: str) -> str:
    """``ma_live_<id>_<secret>``, as a client sends it."""
    return f"ma_live_{key_id}_{secret}"


def split_key(token: str) -> tuple[str, str] | None:
    """(id, secret) of a well-formed key."""
    prefix, _, rest = token.partition("ma_live_")
    key_id, separator, secret = rest.partition("_")
    return (key_id, secret) if not prefix and separator and key_id and secret else None


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
) -> str:
    """Create a key, or bring one to this secret and these rights; returns it as a client sends it.

    ``key_id`` holds letters, digits and hyphens only.
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
    }
    statement = upsert(api_keys).values(id=key_id, created_at=clock.now(), **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
    await notify(connection, ROUTES_CHANNEL, "keys")
    return format_key(key_id, secret)


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
    row = (await connection.execute(select(api_keys).where(api_keys.c.id == parts[0]))).first()
    if row is None or not hmac.compare_digest(row.secret_sha256, sha256(parts[1])):
        return None
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= clock.now()):
        return None
    return load(ApiKey, row)


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
