"""kill -9 of every process while a rollout runs: nothing lost, nothing doubled, and the same end."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from storage import interactions
from storage.database import Database
from tests.scenarios.installation import Installation, Operator, Readers, keys_made, until


async def kill(installation: Installation, role: str) -> None:
    """SIGKILL, and wait until the supervisor has another one."""
    before = installation.pid_of(role)
    assert before is not None
    os.kill(before, signal.SIGKILL)

    async def again() -> bool:
        now = installation.pid_of(role)
        return now is not None and now != before

    await until(f"another {role} runs", again, 30)


class Ledger:
    """What a reader was answered, to be compared with what the log holds."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.broken = 0

    async def read(self, readers: Readers, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                answer = await readers.client.chat.completions.with_raw_response.create(
                    model="story-teller",
                    messages=[{"role": "user", "content": "Tell a story about a mole named Ida."}],
                )
                self.answered.append(answer.headers["x-request-id"])
            except Exception:
                # A connection to a gateway that was just killed: the caller knows that it got no answer.
                self.broken += 1
                await asyncio.sleep(0.1)


async def all_logged(installation: Installation, ledger: Ledger) -> bool:
    database = Database(f"postgresql://postgres@/meta_agent?host={installation.home}/postgres", pool_size=1)
    try:
        async with database.connection() as connection:
            found = [await interactions.find(connection, each) for each in ledger.answered]
    finally:
        await database.close()
    return all(each is not None for each in found)


@pytest.mark.timeout(300)
async def test_each_process_is_killed_once_during_a_rollout(installation: Installation) -> None:
    await keys_made(installation)
    ledger, stop = Ledger(), asyncio.Event()
    async with Operator(installation, "night-shift.key") as operator, Readers(installation) as readers:
        await operator.approve_next()
        reading = asyncio.create_task(ledger.read(readers, stop))
        await operator.in_state("swift-mini", "shadow")
        await kill(installation, "worker")
        await operator.in_state("swift-mini", "canary", weight=0.10)
        await kill(installation, "gateway")
        await operator.in_state("swift-mini", "canary", "promoted", weight=0.25)
        await kill(installation, "control")
        await operator.in_state("swift-mini", "canary", "promoted", weight=0.50)
        await kill(installation, "worker")
        await operator.in_state("swift-mini", "promoted")
        assert await readers.ask_many(20) == {"swift-mini": 20}
        stop.set()
        await reading

        rollout = await operator.rollout_of("swift-mini")
        assert rollout is not None
        events = await operator.get("audit", subject=rollout["id"], limit=100)
        told = [each["event"] for each in reversed(events)]
        assert told == ["rollout.started", *["rollout.step"] * 5, "rollout.promoted"], "each step once"
        deploys = [each for each in await operator.get("proposals") if each["tool"] == "deploy"]
        assert [each["status"] for each in deploys if each["use_case"] == "story-teller"][-1] == "succeeded"

        assert len(ledger.answered) > 20
        await until("every answered request is in the log", lambda: all_logged(installation, ledger), 30, 0.5)
    verified = installation.cli("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
