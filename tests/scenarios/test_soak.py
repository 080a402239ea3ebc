"""Long runs: processes killed at random while a rollout goes on, and traffic with memory that stays flat."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from storage.vocabulary import RolloutState
from tests.scenarios.installation import Installation, Operator, Readers, keys_made, until

ROLES = ("gateway", "worker", "control")


async def kill_at_random(installation: Installation, luck: random.Random, stop: asyncio.Event) -> int:
    kills = 0
    while not stop.is_set():
        await asyncio.sleep(luck.uniform(1.5, 6.0))
        pid = installation.pid_of(luck.choice(ROLES))
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            kills += 1
    return kills


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
async def test_a_rollout_ends_well_whatever_is_killed_when(installation: Installation, seed: int) -> None:
    await keys_made(installation)
    stop = asyncio.Event()
    async with Operator(installation, "night-shift.key") as operator, Readers(installation) as readers:
        await operator.approve_next()
        killing = asyncio.create_task(kill_at_random(installation, random.Random(seed), stop))

        async def ended() -> str | None:
            rollout = await operator.rollout_of("swift-mini")
            return rollout["state"] if rollout and RolloutState(rollout["state"]).is_final else None

        state = await until("the rollout ends", ended, 600)
        stop.set()
        assert await killing >= 3
        assert state == RolloutState.PROMOTED

        async def answers() -> bool:
            try:
                return await readers.ask_many(10) == {"swift-mini": 10}
            except Exception:
                return False  # the gateway was killed a moment ago

        assert await until("the promoted model answers everybody", answers, 60)
    assert installation.cli("audit", "verify").returncode == 0


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.soak
async def test_memory_stays_flat_under_traffic(installation: Installation) -> None:
    await keys_made(installation)
    minutes = float(os.environ.get("META_AGENT_SOAK_MINUTES", "15"))
    await asyncio.sleep(60)  # caches fill, pools open
    before = {role: resident_megabytes(installation.pid_of(role) or 0) for role in ROLES}
    deadline = time.monotonic() + minutes * 60
    async with Operator(installation, "night-shift.key") as operator:
        while time.monotonic() < deadline:
            for waiting in await operator.get("approvals") or []:
                await operator.say_yes(waiting)
            await asyncio.sleep(5)
    after = {role: resident_megabytes(installation.pid_of(role) or 0) for role in ROLES}
    print({role: (round(before[role]), round(after[role])) for role in ROLES})
    for role in ROLES:
        assert after[role] < before[role] * 1.3 + 20, (role, before, after)
    assert installation.cli("audit", "verify").returncode == 0
