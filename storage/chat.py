"""The console's conversations with the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import clock
from storage.rows import columns_for, load
from storage.tables.governance import chat_messages


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; an agent's carries cards of the tools that it used."""

    id: int
    thread_id: str
    author: str
    role: str
    content: str
    cards: list[dict[str, Any]]
    at: datetime


async def append(
    connection: AsyncConnection,
    *,
    thread_id: str,
    author: str,
    role: str,
    content: str,
    cards: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Add a message; returns its id."""
    statement = insert(chat_messages).values(
        thread_id=thread_id,
        author=author,
        role=role,
        content=content,
        cards=[dict(card) for card in cards],
        at=clock.now(),
    )
    return int((await connection.execute(statement.returning(chat_messages.c.id))).scalar_one())


async def history(connection: AsyncConnection, thread_id: str, limit: int = 100) -> list[ChatMessage]:
    """The last messages of a thread, oldest first."""
    query = (
        select(*columns_for(ChatMessage, chat_messages))
        .where(chat_messages.c.thread_id == thread_id)
        .order_by(chat_messages.c.id.desc())
        .limit(limit)
    )
    return [load(ChatMessage, row) for row in await connection.execute(query)][::-1]
