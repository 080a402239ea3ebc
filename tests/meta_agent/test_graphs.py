"""The two state machines on a real database: killed at every write, resumed elsewhere, run side by side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from meta_agent.graphs import threads
from meta_agent.graphs.registry import UnknownGraphVersionError
from meta_agent.runner import Agent
from pipelines import approvals
from storage import clock, decisions, events, flags, proposals
from storage.vocabulary import ApprovalWord, ProposalStatus, Risk, Role
from tools.propose import propose

from .conftest import POLICY

ROOT = Path(__file__).parents[2]
Die = Callable[..., int]


@pytest.fixture(scope="module")
def die() -> Iterator[Die]:
    """Run a worker that dies at a write; returns the signal that killed it, 0 if it lived."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("dying_worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline().strip() == "ready"

    def order(**values: object) -> int:
        process.stdin.write(json.dumps(values) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield order
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
def agent(db, context, settings) -> Agent:
    return Agent(db, context, settings)


async def _propose(fleet, release_id: str, proposer: str = "agent"):
    return await propose(
        fleet.database,
        POLICY,
        tool="deploy",
        arguments={"use_case": fleet.use_case, "release_id": release_id},
        proposer=proposer,
        reason="test",
    )


async def _speak(fleet, proposal_id: str, word: ApprovalWord, approver: str = "ada"):
    async with fleet.database.connection() as connection:
        proposal = await proposals.find(connection, proposal_id)
    return await approvals.speak(
        fleet.database,
        proposal_id,
        approver=approver,
        role=Role.APPROVER,
        word=word,
        binding_digest=proposal.binding_digest,
    )


async def _status(fleet, proposal_id: str) -> str:
    async with fleet.database.connection() as connection:
        return (await proposals.find(connection, proposal_id)).status


async def _runs(fleet) -> int:
    async with await psycopg.AsyncConnection.connect(fleet.database.conninfo) as connection:
        row = await (await connection.execute("select count(*) from dbos.workflow_status")).fetchone()
    return row[0]


async def _all(fleet):
    async with fleet.database.connection() as connection:
        return (
            await decisions.list_cycles(connection),
            await decisions.list_decisions(connection),
            await proposals.list_proposals(connection),
            [each for each in await events.recent(connection) if each.kind == "cycle.finished"],
        )


# --- the cycle --------------------------------------------------------------------------


async def test_a_cycle_proposes_and_keeps_the_whole_story(fleet, agent):
    cycle_id = await agent.run_cycle("manual")
    cycles, kept, filed, told = await _all(fleet)
    assert [each.id for each in cycles] == [cycle_id]
    assert cycles[0].planner == "rules"
    assert cycles[0].ended_at is not None
    assert [each["kind"] for each in cycles[0].signals] == ["catalogue_stale"]
    assert [(each.tool, each.proposer, each.cycle_id) for each in filed] == [("scan", "agent", cycle_id)]
    assert [(each.proposal_id, each.cycle_id) for each in kept] == [(filed[0].id, cycle_id)]
    assert kept[0].verdict["outcome"] == "allow"
    assert len(told) == 1


async def test_a_situation_is_explained_once(fleet, agent):
    await agent.run_cycle("manual")
    await agent.run_cycle("timer")
    await agent.run_cycle("timer")
    _, kept, filed, _ = await _all(fleet)
    assert len(filed) == 1
    assert [each.action is None for each in kept] == [True, False]
    assert kept[0].reason == "Do nothing, because: scan: a scan is under way"


async def test_a_quiet_fleet_leaves_no_decision(fleet, agent):
    await fleet.scanned()
    await fleet.ranked(savings=(0.1, 0.1))
    await agent.run_cycle("timer")
    cycles, kept, filed, _ = await _all(fleet)
    assert (len(cycles), kept, filed) == (1, [], [])


async def test_a_paused_agent_proposes_nothing(fleet, agent):
    async with fleet.database.transaction() as connection:
        await flags.put(connection, flags.AGENT_PAUSED, True, "user:ada")
    await agent.run_cycle("timer")
    _, kept, filed, _ = await _all(fleet)
    assert filed == []
    assert [each.reason for each in kept] == ["Do nothing, because: scan: the agent is paused"]


async def test_two_workers_do_not_cycle_at_once(fleet, db, context, settings):
    first, second = Agent(db, context, settings), Agent(db, context, settings)
    moment = clock.now()
    ran = await asyncio.gather(first.run_cycle("timer", moment), second.run_cycle("timer", moment))
    assert sum(each is not None for each in ran) == 1
    assert len((await _all(fleet))[0]) == 1


async def test_a_cycle_that_is_killed_at_any_write_ends_once(fleet, agent, die):
    lived, write = False, 0
    while not lived:
        write += 1
        before = len((await _all(fleet))[0])
        killed = await asyncio.to_thread(die, url=fleet.database.url, kill_at=write)
        assert killed in (0, 9)
        lived = killed == 0
        await _settle(agent, fleet)
        cycles, kept, filed, told = await _all(fleet)
        assert len(cycles) == before + 1
        assert all(each.ended_at and not each.error for each in cycles)
        assert len(told) == len(cycles)
        acted = [each for each in kept if each.action]
        assert len(acted) == len(filed) == write
        assert {each.cycle_id for each in filed} == {each.id for each in cycles}
        async with fleet.database.transaction() as connection:
            for each in filed:  # so that the next cycle has the same to do
                await proposals.update_proposal(connection, each.id, status=ProposalStatus.SUCCEEDED)
    assert write > 6


async def _settle(agent: Agent, fleet) -> None:
    """What a restarted worker does first, without the cycle of its own that comes after."""
    async with fleet.database.connection() as connection:
        newest = (await decisions.list_cycles(connection))[0]
    assert await agent.run_cycle("resume", unless_since=newest.started_at - timedelta(seconds=1)) is None


async def test_a_cycle_that_breaks_is_closed_and_the_next_one_runs(db, fleet, context, settings):
    class Broken:
        async def plan(self, facts, signals):
            raise ZeroDivisionError("a bug")

    await Agent(db, context, settings, Broken()).run_cycle("timer")
    await Agent(db, context, settings).run_cycle("timer")
    cycles, _, filed, _ = await _all(fleet)
    assert [each.error for each in cycles] == [None, "ZeroDivisionError: a bug"]
    assert len(filed) == 1


# --- proposals --------------------------------------------------------------------------


async def test_low_risk_goes_alone_and_only_once(db, fleet, context, settings):
    first, second = Agent(db, context, settings), Agent(db, context, settings)
    await first.run_cycle("manual")
    (_, _, (scan,), _) = await _all(fleet)
    outcomes = await asyncio.gather(*(each.tick_action(scan.id) for each in (first, second) * 3))
    assert set(outcomes) <= {"executing", "busy"}
    assert await _runs(fleet) == 1
    assert await second.tick_action(scan.id) == "executing"
    assert await _runs(fleet) == 1


async def test_medium_risk_waits_survives_the_process_and_goes_on_after_an_approval(
    db, fleet, context, settings
):
    proposal = await _propose(fleet, await fleet.evaluated(fleet.offerings[1]))
    assert await Agent(db, context, settings).tick_action(proposal.id) == "waiting"
    assert await Agent(db, context, settings).tick_action(proposal.id) == "waiting"
    assert await _runs(fleet) == 0
    await _speak(fleet, proposal.id, ApprovalWord.APPROVE)
    agents = [Agent(db, context, settings) for _ in range(4)]
    assert "executing" in await asyncio.gather(*(each.tick_action(proposal.id) for each in agents))
    assert await _status(fleet, proposal.id) == "executing"
    assert await _runs(fleet) == 1


async def test_a_rejected_proposal_never_runs(fleet, agent):
    proposal = await _propose(fleet, await fleet.evaluated(fleet.offerings[1]))
    await agent.tick_action(proposal.id)
    await _speak(fleet, proposal.id, ApprovalWord.REJECT)
    assert await agent.tick_action(proposal.id) == "rejected"
    assert await agent.tick_action(proposal.id) == "rejected"
    assert await _runs(fleet) == 0


async def test_a_high_risk_use_case_takes_two_people(db, context, settings, fleet):
    async with db.transaction() as connection:
        await fleet.declare(connection, Risk.HIGH)
    proposal = await _propose(fleet, await fleet.evaluated(fleet.offerings[1]))
    agent = Agent(db, context, settings)
    await agent.tick_action(proposal.id)
    await _speak(fleet, proposal.id, ApprovalWord.APPROVE, "ada")
    assert await agent.tick_action(proposal.id) == "waiting"
    await _speak(fleet, proposal.id, ApprovalWord.APPROVE, "grace")
    assert await agent.tick_action(proposal.id) == "executing"


async def test_what_policy_denies_ends_there(fleet, agent):
    proposal = await _propose(fleet, await fleet.evaluated(fleet.offerings[1], cases=3))
    assert await agent.tick_action(proposal.id) == "denied"
    assert await _runs(fleet) == 0


async def test_a_proposal_that_is_killed_at_any_write_runs_once(fleet, agent, die):
    lived, write = False, 0
    while not lived:
        write += 1
        proposal = await propose(
            fleet.database, POLICY, tool="scan", arguments={}, proposer="agent", reason="test"
        )
        killed = await asyncio.to_thread(die, url=fleet.database.url, kill_at=write, proposal=proposal.id)
        assert killed in (0, 9)
        lived = killed == 0
        # The server frees the dead one's lock when it notices the end of its connection.
        async with asyncio.timeout(20):
            while (status := await agent.tick_action(proposal.id)) == "busy":
                await asyncio.sleep(0.05)
        assert status == "executing"
        assert await _runs(fleet) == write
    assert write > 5


async def test_a_thread_of_another_version_is_not_touched(fleet, agent, db, context, settings):
    proposal = await _propose(fleet, await fleet.evaluated(fleet.offerings[1]))
    await agent.tick_action(proposal.id)
    async with await psycopg.AsyncConnection.connect(threads.threads_conninfo(db)) as connection:
        await connection.execute(
            """update checkpoints set metadata = metadata || '{"graph_version": "action/0"}'"""
        )
    with pytest.raises(UnknownGraphVersionError, match="action/0"):
        await agent.tick_action(proposal.id)


async def test_checkpoints_hold_ids_only_and_live_in_their_own_schema(fleet, agent, db):
    await agent.run_cycle("manual")
    async with await psycopg.AsyncConnection.connect(db.conninfo) as connection:
        rows = await (
            await connection.execute("select checkpoint->'channel_values' from agent_threads.checkpoints")
        ).fetchall()
        public = await (await connection.execute("select to_regclass('public.checkpoints')")).fetchone()
    assert public == (None,)
    assert len(rows) == 1  # the history of a finished thread is pruned
    assert set(rows[0][0]) <= {"cycle_id", "outcome"}


# --- the loop ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(agent.serve(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def _until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_the_loop_cycles_at_once_carries_on_and_wakes_on_events(db, fleet, context, settings):
    async def executing() -> bool:
        filed = (await _all(fleet))[2]
        return bool(filed) and filed[0].status == ProposalStatus.EXECUTING

    async def ranks() -> bool:
        return "rank" in {each.tool for each in (await _all(fleet))[2]}

    async with serving(Agent(db, context, settings)):
        await _until(executing)
        await fleet.scanned()
        (_, _, (scan,), _) = await _all(fleet)
        async with fleet.database.transaction() as connection:
            await proposals.finish(connection, scan.id, succeeded=True, outcome={})
            await events.publish(connection, kind="scan.finished", subject=scan.id, data={})
        await _until(ranks)
    cycles = (await _all(fleet))[0]
    assert cycles[-1].trigger == "start"
    assert cycles[0].trigger == "event:scan.finished"


async def test_the_loop_sees_approvals_and_expiry(db, fleet, context, settings):
    release = await fleet.evaluated(fleet.offerings[1])
    proposal = await _propose(fleet, release, proposer="user:bob")
    late = await propose(
        db,
        POLICY,
        tool="deploy",
        arguments={"use_case": fleet.use_case, "release_id": release},
        proposer="user:carol",
        reason="test",
        expires_in=timedelta(seconds=2),
    )

    def reached(proposal_id: str, status: str):
        async def check() -> bool:
            return await _status(fleet, proposal_id) == status

        return check

    async with serving(Agent(db, context, settings)):
        await _until(reached(proposal.id, "waiting"))
        await _until(reached(late.id, "expired"))
        await _speak(fleet, proposal.id, ApprovalWord.APPROVE)
        await _until(reached(proposal.id, "executing"))


async def test_the_loop_survives_its_connections_being_cut(db, fleet, context, settings):
    async def asked(count: int) -> bool:
        return len((await _all(fleet))[2]) >= count

    async with serving(Agent(db, context, settings)):
        await _until(lambda: asked(1))
        async with await psycopg.AsyncConnection.connect(db.conninfo, autocommit=True) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        later = await propose(db, POLICY, tool="scan", arguments={}, proposer="user:ada", reason="test")

        async def carried() -> bool:
            return await _status(fleet, later.id) == "executing"

        await _until(carried)
