"""The whole story, with no hand on it but the approver's: scan, rank, test, deploy, promote, roll back.

Which model answered is read from the wire at each stage, not from a table.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.scenarios.installation import Installation, Operator, Readers, keys_made, until


async def served_by(installation: Installation, provider: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as http:
        stats = (await http.get(f"http://127.0.0.1:{installation.providers[provider]}/_sim/stats")).json()
    return int(sum(model["answered"] for model in stats.values()))


@pytest.mark.timeout(300)
async def test_the_whole_loop(installation: Installation) -> None:
    await keys_made(installation)
    async with Operator(installation, "night-shift.key") as operator, Readers(installation) as readers:
        await play(installation, operator, readers)

    # 7: all of it is in a chain that holds, and stays known after a restart.
    verified = installation.cli("audit", "verify", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["rows"] > 20
    assert installation.stop() == 0


async def play(installation: Installation, operator: Operator, readers: Readers) -> None:
    # 1, 2: scanned and ranked, by itself.
    async def ranking() -> Any:
        found = await operator.get("rankings/story-teller")
        return found if found and found["candidates"] else None

    ranked = await until("candidates are ranked", ranking, 90)
    assert {each["model"] for each in ranked["candidates"]} >= {"swift-mini", "rough-draft"}
    assert sum(ranked["excluded"]["counts"].values()) > 2000, "every other offering has a reason"
    assert await readers.ask_many(10) == {"atlas-large": 10}

    # 3, 4, 5: found worth testing, tested, judged; it waits for a person, and nothing moves meanwhile.
    proposal = await operator.approve_next()
    assert (proposal["tool"], proposal["proposer"]) == ("deploy", "agent")
    outcomes = {each["offering_id"]: each["status"] for each in await operator.get("evaluations")}
    assert sorted(outcomes.values()) == ["failed", "passed"], (
        "the rough candidate fell short, the thrifty passed"
    )

    # Shadow: the candidate works, and nobody meets it.
    await operator.in_state("swift-mini", "shadow")
    before = await served_by(installation, "thrift")
    assert await readers.ask_many(10) == {"atlas-large": 10}
    rollout = await operator.in_state("swift-mini", "canary")
    assert await served_by(installation, "thrift") > before

    # Canary: some conversations meet it, each stays on its side, the share grows.
    answered = await readers.ask_many(80)
    assert set(answered) == {"atlas-large", "swift-mini"}, rollout
    half = await operator.in_state("swift-mini", "canary", "promoted", weight=0.5)
    sides = [[await readers.ask(f"sticky-{number}") for _ in range(3)] for number in range(6)]
    still = await operator.rollout_of("swift-mini")
    if still and still["weight"] == half["weight"]:
        assert all(len(set(side)) == 1 for side in sides)
    await operator.in_state("swift-mini", "promoted")
    assert await readers.ask_many(20) == {"swift-mini": 20}

    # 6: a second candidate appears, passes, is trusted, falls ill, and is sent back.
    second = await operator.approve_next()
    assert second["tool"] == "deploy"
    await operator.in_state("budget-nano", "canary")
    assert "budget-nano" in await readers.ask_many(80)
    ended = await operator.in_state("budget-nano", "rolled_back")
    assert ended["weight"] == 0
    assert await readers.ask_many(20) == {"swift-mini": 20}
    incidents = await operator.get("incidents")
    assert any(each["intervention"] == "rolled_back" for each in incidents)
    assert any(each["intervention"] == "blocked" for each in incidents), "unsafe outputs were stopped"
    decisions = await operator.get("decisions")
    reasons = [each["reason"] for each in decisions if each["actor"].startswith("rollout:")]
    assert any("budget-nano" in reason for reason in reasons)
