"""Keys and operators. Admins manage them; everybody may change their own password."""

from __future__ import annotations

from datetime import datetime, timedelta

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, ConfigDict, Field

from meta_agent import acting, keys, privacy
from meta_agent.callers import Caller, World, require_admin
from meta_agent.reading.models import (
    ErasureRead,
    KeyCreated,
    KeyRead,
    UsageRead,
    UserCreated,
    UserRead,
)
from meta_agent.reading.usage import read_key_usage
from meta_agent.refusals import not_found
from meta_agent.serving_settings import LimitsSettings
from storage import identities
from storage.vocabulary import Role

router = APIRouter(prefix="/api/v1", tags=["identity"], dependencies=[Depends(require_admin)])


#: What operators may ask for themselves: who may change what is decided by ``acting``.
account = APIRouter(prefix="/api/v1", tags=["identity"])


class KeyCreate(BaseModel):
    """What a new key may do."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    scopes: list[str] = Field(min_length=1, max_length=10)
    use_cases: list[str] | None = Field(None, max_length=100)
    acts_as: str | None = Field(None, max_length=100)
    expires_at: datetime | None = None
    limits: LimitsSettings | None = None


class KeyChange(BaseModel):
    """What is to change; what is not given stays."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", min_length=1, max_length=100)
    use_cases: list[str] | None = Field(None, max_length=100, description="null: every one")
    expires_at: datetime | None = Field(None, description="null: never")
    limits: LimitsSettings | None = Field(None, description="merged into those there are; null: none at all")


class KeyRotation(BaseModel):
    """How a new secret is brought in."""

    model_config = ConfigDict(extra="forbid")

    grace_hours: float = Field(24.0, ge=0, le=2160, description="so long the old secret is valid as well")


class ErasureCreate(BaseModel):
    """Who is to be forgotten."""

    model_config = ConfigDict(extra="forbid")

    user: str = Field(min_length=1, max_length=1000, repr=False, description="as applications send it")


@router.get("/keys")
async def list_keys(services: World) -> list[KeyRead]:
    """Every key, by name, without secrets."""
    async with services.database.connection() as connection:
        return [KeyRead.model_validate(each) for each in await identities.list_keys(connection)]


@router.post("/keys", status_code=status.HTTP_201_CREATED)
async def create_key(body: KeyCreate, services: World, caller: Caller) -> KeyCreated:
    """A new key. The secret is in this answer and nowhere else."""
    given = {name: getattr(body, name) for name in KeyCreate.model_fields}
    return await keys.create_key(services, caller, **given)


@router.patch("/keys/{key_id}")
async def change_key(key_id: str, body: KeyChange, services: World, caller: Caller) -> KeyRead:
    """Change name, use cases, expiry or limits of a key. Gateways are told."""
    changes = body.model_dump(mode="json", exclude_unset=True)
    if "expires_at" in changes:
        changes["expires_at"] = body.expires_at
    return await keys.change_key(services, caller, key_id, changes)


@router.post("/keys/{key_id}/rotate")
async def rotate_key(key_id: str, body: KeyRotation, services: World, caller: Caller) -> KeyCreated:
    """A new secret, which is in this answer and nowhere else; the one before stays valid for a while.

    A secret that is older than that is worthless at once.
    """
    return await keys.rotate_key(services, caller, key_id, timedelta(hours=body.grace_hours))


@router.get("/keys/{key_id}/usage")
async def key_usage(key_id: str, services: World) -> UsageRead:
    """What was used with a key today and in this month."""
    async with services.database.connection() as connection:
        if await identities.get_key(connection, key_id) is None:
            raise not_found("key", key_id)
        return await read_key_usage(connection, key_id)


@router.delete("/keys/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke_key(key_id: str, services: World, caller: Caller) -> None:
    """Make a key worthless from now on."""
    await keys.revoke_key(services, caller, key_id)


class UserCreate(BaseModel):
    """A new operator."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    role: Role
    password: str | None = Field(None, min_length=12, max_length=200, repr=False)


class UserChange(BaseModel):
    """What is to change; what is not given stays."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    password: str | None = Field(None, min_length=12, max_length=200, repr=False)
    disabled: bool | None = None


@router.post("/users", status_code=status.HTTP_201_CREATED)
async def create_user(body: UserCreate, services: World, caller: Caller) -> UserCreated:
    """A new operator. A password that was not given is made, and is in this answer and nowhere else."""
    return await acting.create_user(services, caller, **body.model_dump())


@account.patch("/users/{name}")
async def change_user(name: str, body: UserChange, services: World, caller: Caller) -> UserRead:
    """Change an operator's role or password, or shut them out."""
    return await acting.change_user(services, caller, name, **body.model_dump())


@router.get("/users")
async def list_users(services: World) -> list[UserRead]:
    """Every operator, by name."""
    async with services.database.connection() as connection:
        return [UserRead.model_validate(each) for each in await identities.list_users(connection)]


@router.post("/privacy/erasures", status_code=status.HTTP_201_CREATED)
async def erase_user(body: ErasureCreate, services: World, caller: Caller) -> ErasureRead:
    """Remove what a user said and was told. Long work: ask again until ``complete``."""
    return await privacy.erase(services, caller, body.user)
