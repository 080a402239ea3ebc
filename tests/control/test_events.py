"""The live feed: replay by id, what happens later, heartbeats, and many readers on one listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from meta_agent.api.event_stream import frames
from meta_agent.live_feed import LiveFeed
from storage import events
from storage.database import Database
from storage.events import Event
from storage.testing import fresh_database


@pytest.fixture
async def db(server_url: str) -> AsyncIterator[Database]:
    """Without events."""
    async with fresh_database(server_url) as database:
        yield database


async def publish(db: Database, *kinds: str) -> None:
    async with db.transaction() as connection:
        for kind in kinds:
            await events.publish(connection, kind=kind, subject="s", data={"text": "a\nb </script>"})


async def following(stream: AsyncGenerator[Event | None, None]) -> Event:
    async def first() -> Event:
        async for event in stream:
            if event is not None:
                return event
        raise AssertionError("the feed ended")

    return await asyncio.wait_for(first(), 10)


async def test_what_was_missed_is_replayed_and_what_comes_follows(db: Database) -> None:
    await publish(db, "rollout.started", "rollout.step")
    feed = LiveFeed(db)
    stream = feed.follow(1, 30)
    assert (await following(stream)).kind == "rollout.step"
    await publish(db, "rollout.promoted")
    assert (await following(stream)).kind == "rollout.promoted"
    await stream.aclose()


async def test_without_an_id_only_news_are_told(db: Database) -> None:
    await publish(db, "old")
    feed = LiveFeed(db)
    streams = [feed.follow(None, 30) for _ in range(3)]
    for stream in streams:
        assert await anext(stream) is None  # it stands
    waiting = [asyncio.create_task(following(stream)) for stream in streams]
    await publish(db, "new")
    assert [event.kind for event in await asyncio.gather(*waiting)] == ["new"] * 3
    for stream in streams:
        await stream.aclose()


async def test_a_long_absence_is_replayed_whole_and_once(db: Database) -> None:
    await publish(db, *(f"kind.{index}" for index in range(450)))
    feed = LiveFeed(db)
    stream = feed.follow(0, 30)
    found = [(await following(stream)).id for _ in range(450)]
    assert found == list(range(1, 451))
    await stream.aclose()


async def test_quiet_is_told_too(db: Database) -> None:
    stream = frames(LiveFeed(db), None)
    assert await anext(stream) == "retry: 1000\n\n"
    assert await anext(stream) == ": quiet\n\n"
    pending = asyncio.ensure_future(anext(stream))
    await publish(db, "incident.opened")
    frame = await asyncio.wait_for(pending, 10)
    assert frame.startswith("id: ")
    assert frame.count("\n") == 3  # one id line, one data line, one empty line: text cannot end a message
    await stream.aclose()
