"""The chat page: a form whose answer streams in as server-sent HTML, or a plain form without scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response, StreamingResponse

from meta_agent import chat
from meta_agent.access import Identity
from meta_agent.callers import Caller, World
from meta_agent.chat_answers import HELP
from meta_agent.console.rendering import page, render, see
from meta_agent.services import Services
from storage.chat import ChatMessage
from storage.clock import now

router = APIRouter()

SUGGESTIONS = ("status", "what did you decide?", "approvals", "incidents", "cost", "help")


def _thread(identity: Identity) -> str:
    """Everybody has a thread of their own."""
    return f"console:{identity.name}"


@router.get("/chat")
async def chat_page(request: Request, services: World, caller: Caller) -> Response:
    """The conversation so far, and the form."""
    messages = await chat.history(services, _thread(caller))
    return await page(
        request, services, caller, "chat.html", messages=messages, suggestions=SUGGESTIONS, welcome=HELP
    )


@router.post("/chat")
async def say(
    request: Request, services: World, caller: Caller, text: Annotated[str, Form(max_length=2000)]
) -> Response:
    """Take one line and stream the answer."""
    if not text.strip():
        return see("/chat")
    if request.headers.get("hx-request") != "true":
        async for _ in chat.answer(services, _thread(caller), caller.name, caller.role, text):
            pass  # it is stored; the page shows it
        return see("/chat")
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_stream(services, caller, text), media_type="text/event-stream", headers=headers)


async def _stream(services: Services, caller: Identity, text: str) -> AsyncIterator[str]:
    yield _message(caller.name, chat.OPERATOR, text)
    async for event in chat.answer(services, _thread(caller), caller.name, caller.role, text):
        if event.card is not None:
            yield _frame(render("parts/message_card.html", card=event.card))
        else:
            yield _message(chat.AGENT, chat.AGENT, event.text)


def _message(author: str, role: str, content: str) -> str:
    message = ChatMessage(0, "", author, role, content, [], now())
    return _frame(render("parts/message.html", message=message))


def _frame(html: str) -> str:
    """One server-sent message; a line break must not end it."""
    lines = html.replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines) + "\n"
