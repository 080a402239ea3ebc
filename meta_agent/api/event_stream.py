"""The live feed as server-sent events: unnamed JSON messages with ids, replayed by Last-Event-ID."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse

from meta_agent.live_feed import LiveFeed
from meta_agent.reading.models import EventRead
from storage.events import Event

router = APIRouter(prefix="/api/v1", tags=["events"])

HEARTBEAT_SECONDS = 15.0
#: A stream ends after this long; the client comes back with its last id, and is asked again who it is.
LONGEST_SECONDS = 600.0
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def frames(feed: LiveFeed, last_id: int | None) -> AsyncGenerator[str, None]:
    """SSE frames: a retry hint first, then events and heartbeats."""
    ends = time.monotonic() + LONGEST_SECONDS
    yield "retry: 1000\n\n"
    async with aclosing(feed.follow(last_id, HEARTBEAT_SECONDS)) as events:
        async for event in events:
            yield ": quiet\n\n" if event is None else _frame(event)
            if time.monotonic() > ends:
                return


def _frame(event: Event) -> str:
    return f"id: {event.id}\ndata: {EventRead.model_validate(event).model_dump_json()}\n\n"


@router.get(
    "/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}}
)
async def stream(
    request: Request, last_event_id: str | None = Header(None, max_length=20)
) -> StreamingResponse:
    """What happens, as it happens. Without Last-Event-ID: from now on."""
    feed: LiveFeed = request.app.state.feed
    last_id = int(last_event_id) if last_event_id and last_event_id.isdigit() else None
    return StreamingResponse(frames(feed, last_id), media_type="text/event-stream", headers=HEADERS)
