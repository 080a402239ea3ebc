"""The operators' conversation with the agent: one line in, cards and words out, all of it kept.

Whoever understands the line, it can only look things up and file proposals in the operator's name.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from meta_agent.access import Identity
from meta_agent.chat_answers import Card, Turn, reply_to
from meta_agent.chat_intents import understand
from meta_agent.services import Services
from storage import chat
from storage.chat import ChatMessage
from storage.vocabulary import Role

log = logging.getLogger(__name__)

AGENT = "agent"
OPERATOR = "operator"


@dataclass(frozen=True)
class ChatEvent:
    """A piece of the answer, in the order in which it is shown."""

    kind: Literal["card", "text"]
    text: str = ""
    card: Card | None = None


async def answer(
    services: Services, thread_id: str, author: str, role: Role, text: str
) -> AsyncIterator[ChatEvent]:
    """Answer one line. Both sides are stored, also when the reader goes away in the middle."""
    await _store(services, thread_id, author, OPERATOR, text)
    identity = Identity(author, role, speaks_for=author)
    reply = await reply_to(Turn(services, identity, understand(text)))
    await _store(services, thread_id, AGENT, AGENT, reply.text, reply.cards)
    for card in reply.cards:
        yield ChatEvent("card", card=card)
    yield ChatEvent("text", text=reply.text)


async def history(services: Services, thread_id: str, limit: int = 60) -> list[ChatMessage]:
    """The last messages of a thread, oldest first."""
    async with services.database.connection() as connection:
        return await chat.history(connection, thread_id, limit)


async def _store(
    services: Services, thread_id: str, author: str, role: str, content: str, cards: Sequence[Card] = ()
) -> None:
    async with services.database.transaction() as connection:
        await chat.append(
            connection, thread_id=thread_id, author=author, role=role, content=content, cards=cards
        )
