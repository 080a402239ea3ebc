"""What a task may rely on when it is cancelled in the middle of its dealings with the database."""

from __future__ import annotations

import asyncio
import contextlib

import orjson

from storage.clock import now
from storage.database import Database, DatabaseUnavailable
from storage.ids import new_id
from storage.interactions import copy_documents


def _document() -> bytes:
    row = {"id": new_id("int"), "at": now(), "kind": "live", "key_id": "app", "use_case": "story-teller"}
    return orjson.dumps({**row, "status": "ok", "stream": False, "usage_estimated": False, "findings": []})


async def test_a_cancelled_task_ends_wherever_it_stood(db: Database) -> None:
    """Also where the driver fails at rolling back what was cancelled: nobody takes that for an absence."""

    async def work() -> None:
        while True:
            with contextlib.suppress(*DatabaseUnavailable):
                await copy_documents(db, [_document()], [])
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    for number in range(45):
        task = asyncio.ensure_future(work())
        later = loop.create_future()
        loop.call_later(number / 3_000, later.set_result, None)
        await later
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=3)
        assert done, "the cancellation was lost"
        assert task.cancelled()
