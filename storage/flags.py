"""Switches that people set and processes read, such as the agent's pause."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.tables.fleet import flags

#: The meta-management model as provider/model, which never answers an application; null without one.
META_MODEL = "meta_model"

#: True while the agent may not act by itself.
AGENT_PAUSED = "agent_paused"


async def get(connection: AsyncConnection, name: str, default: Any = None) -> Any:
    """The value of a flag."""
    row = (await connection.execute(select(flags.c.value).where(flags.c.name == name))).first()
    return default if row is None else row.value


async def put(connection: AsyncConnection, name: str, value: Any, changed_by: str) -> None:
    """Set a flag."""
    values = {"value": value, "changed_by": changed_by, "changed_at": clock.now()}
    statement = upsert(flags).values(name=name, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
