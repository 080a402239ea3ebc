"""The operators' conversation with the agent: one line in, cards and words out, all of it kept.

Whoever understands the line, it can only look things up and file proposals in the operator's name.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from meta_agent.access import Identity
from meta_agent.chat_answers import HELP, Card, Reply, Turn, reply_to
from meta_agent.chat_intents import Verb, understand
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
    reply = await _reply(Turn(services, identity, understand(text)), text)
    await _store(services, thread_id, AGENT, AGENT, reply.text, reply.cards)
    for card in reply.cards:
        yield ChatEvent("card", card=card)
    yield ChatEvent("text", text=reply.text)


async def _reply(turn: Turn, text: str) -> Reply:
    """Typed commands never need a language model; what no pattern understands may get one."""
    if turn.intent.verb is not Verb.UNKNOWN or not turn.services.settings.agent.model:
        return await reply_to(turn)
    from meta_agent.chat_model import reply_by_model  # LangChain costs seconds: only who has a model pays

    try:
        return await reply_by_model(turn, text)
    except Exception as error:
        # Whatever a provider or its client raises, the conversation goes on without it. Its words may
        # repeat the key that was sent, so that only the kind of the error is written down.
        log.warning("the chat model did not answer: %s", type(error).__name__)
        return Reply("The language model did not answer, so here is what I know by myself.\n\n" + HELP)


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
