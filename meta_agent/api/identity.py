"""Keys and operators. Admins manage them; everybody may change their own password."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, ConfigDict, Field

from meta_agent import acting
from meta_agent.callers import Caller, World, require_admin
from meta_agent.reading.models import KeyCreated, KeyRead, UserCreated, UserRead
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


@router.get("/keys")
async def list_keys(services: World) -> list[KeyRead]:
    """Every key, by name, without secrets."""
    async with services.database.connection() as connection:
        return [KeyRead.model_validate(each) for each in await identities.list_keys(connection)]


@router.post("/keys", status_code=status.HTTP_201_CREATED)
async def create_key(body: KeyCreate, services: World, caller: Caller) -> KeyCreated:
    """A new key. The secret is in this answer and nowhere else."""
    return await acting.create_key(services, caller, **body.model_dump())


@router.delete("/keys/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke_key(key_id: str, services: World, caller: Caller) -> None:
    """Make a key worthless from now on."""
    await acting.revoke_key(services, caller, key_id)


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
