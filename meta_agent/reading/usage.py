"""What was used of what is limited, as people ask for it."""

from __future__ import annotations

from dataclasses import asdict

from meta_agent.reading.models import UsageRead, UseCaseUsage
from storage import usage
from storage.clock import now
from storage.database import Connection


async def read_key_usage(connection: Connection, key_id: str) -> UsageRead:
    """What was asked for with a key."""
    [found] = await _read(connection, f"key:{key_id}")
    return found


async def read_use_case_usage(connection: Connection, name: str) -> UseCaseUsage:
    """What a use case's traffic took, and its shadow copies."""
    live, shadow = await _read(connection, f"use_case:{name}", f"shadow:{name}")
    return UseCaseUsage(live=live, shadow=shadow)


async def _read(connection: Connection, *subjects: str) -> list[UsageRead]:
    today = now().date()
    found = await usage.totals(connection, subjects, today)
    return [UsageRead(day=today, **asdict(each)) for each in found]
