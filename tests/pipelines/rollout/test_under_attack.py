"""Rollouts in a hostile world: lost runs, racing people, changed grounds, much traffic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import text

from pipelines.context import Context, PipelineError
from pipelines.rollout.betting import RestartingLabelBet
from pipelines.rollout.ending import roll_back_release
from pipelines.rollout.health import find_alert
from pipelines.rollout.orphans import end_orphans
from pipelines.rollout.run import advance, analyse, start_rollout
from storage import audit, clock, deployments, evaluations, interactions, proposals, rollouts, routes
from storage.database import Connection, Database
from storage.ids import new_id
from storage.rollouts import Rollout
from storage.vocabulary import Arm, AssignmentUnit, EvaluationStatus, ProposalStatus, RolloutState
from tests.factories import World, make_context, make_release, make_world

T = TypeVar("T")

PLAN: dict[str, Any] = {
    "shadow": None,
    "canary": [{"weight": weight, "min_units": 10, "max_wait_seconds": 600} for weight in (0.5, 1.0)],
}


@dataclass
class DirectRun:
    """A run without memory: each step is simply done."""

    id: str
    context: Context

    async def step(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def begin(db: Database, world: World, context: Context) -> Rollout:
    """A rollout in its first canary step, carried out for a proposal."""
    async with db.transaction() as connection:
        proposal_id = await proposals.create(
            connection,
            tool="deploy",
            arguments={"use_case": world.use_case, "release_id": world.candidate},
            use_case=world.use_case,
            proposer="agent",
            reason="test",
            expires_in=timedelta(hours=1),
        )
    rollout_id = await start_rollout(DirectRun(proposal_id, context), world.use_case, world.candidate)
    return await advance(context, rollout_id)


async def serving(db: Database, use_case: str) -> str | None:
    async with db.connection() as connection:
        route = await routes.current_route(connection, use_case)
    return route.release_of(Arm.STABLE) if route and len(route.arms) == 1 else None


async def set_stable(connection: Connection, world: World, release_id: str, by: str = "rollout:x") -> None:
    await deployments.mark_stable(connection, release_id)
    await routes.set_route(
        connection,
        use_case=world.use_case,
        arms=[routes.ArmSetting(Arm.STABLE, release_id, 1.0)],
        assignment_unit=AssignmentUnit.CONVERSATION,
        reason="test",
        created_by=by,
    )


async def fill(db: Database, rollout: Rollout, count: int) -> None:
    """Many answers with long bodies, half of them on each arm, in one statement."""
    async with db.transaction() as connection:
        await connection.execute(
            text(
                "insert into interactions (id, at, kind, use_case, rollout_id, arm, release_id, weight, unit,"
                " status, latency_ms, cost_usd, response_text, request)"
                " select 'i' || n, now(), 'live', :use_case, :rollout,"
                " case when n % 2 = 0 then 'stable' else 'candidate' end,"
                " case when n % 2 = 0 then :stable else :candidate end, 0.5, 'u' || n / 2 * 2 + n % 2,"
                " case when n % 7 = 0 then 'error' else 'ok' end, 100 + n % 13, 0.001,"
                " repeat(md5(n::text), 20), jsonb_build_object('messages', repeat(md5(n::text), 20))"
                " from generate_series(1, :count) n"
            ),
            {
                "use_case": rollout.use_case,
                "rollout": rollout.id,
                "stable": rollout.stable_release_id,
                "candidate": rollout.candidate_release_id,
                "count": count,
            },
        )


async def test_a_rollout_whose_run_broke_is_not_left_half_way(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await begin(db, world, context)
    assert rollout.state == RolloutState.CANARY
    assert await end_orphans(context) == [], "its run is there"
    async with db.transaction() as connection:
        assert rollout.proposal_id is not None
        await proposals.finish(connection, rollout.proposal_id, succeeded=False, outcome={}, error="broke")
    ended = await asyncio.gather(end_orphans(context), end_orphans(context))
    assert sorted(ended) == [[], [rollout.id]]
    assert await serving(db, world.use_case) == world.stable
    async with db.connection() as connection:
        (row,) = await audit.list_rows(connection, subject=rollout.id, event="rollout.aborted")
        (incident,) = await interactions.list_incidents(connection, world.use_case)
    assert "nobody looked" in row.data
    assert '"outcome":"allow"' in row.data
    assert incident.category == "rollout_orphaned"


async def test_an_evaluation_whose_run_broke_is_closed(db: Database) -> None:
    world = await make_world(db, status=EvaluationStatus.RUNNING)
    context = make_context(db)
    async with db.transaction() as connection:
        proposal_id = await proposals.create(
            connection,
            tool="test",
            arguments={},
            use_case=world.use_case,
            proposer="agent",
            reason="test",
            expires_in=timedelta(hours=1),
        )
        await connection.execute(text("update evaluations set proposal_id = :id"), {"id": proposal_id})
        await proposals.update_proposal(connection, proposal_id, status=ProposalStatus.FAILED)
    await end_orphans(context)
    async with db.connection() as connection:
        found = await evaluations.find(connection, world.evaluation)
    assert found is not None
    assert found.status == EvaluationStatus.ERROR


async def test_an_abort_that_arrives_during_a_transition_is_not_lost(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await begin(db, world, context)
    await fill(db, rollout, 400)
    # The transition is held up at the routes, after it has read the row and before it writes it.
    async with db.transaction() as held:
        await routes.lock(held)
        moving = asyncio.create_task(advance(context, rollout.id))
        await blocked(db)
        wishing = asyncio.create_task(wish(db, rollout, "abort"))
        await asyncio.sleep(0)
    moved = await moving
    assert moved.weight == 1.0
    assert await wishing
    assert (await advance(context, rollout.id)).state == RolloutState.ABORTED


async def blocked(db: Database) -> None:
    """Until somebody waits for a lock."""
    query = text("select exists (select from pg_locks where not granted)")
    async with asyncio.timeout(10), db.connection() as connection:
        while not (await connection.execute(query)).scalar_one():
            await asyncio.sleep(0.01)


async def wish(db: Database, rollout: Rollout, word: str) -> bool:
    async with db.transaction() as connection:
        return await rollouts.request(connection, rollout.id, word)


async def test_nothing_replaces_an_abort(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await begin(db, world, context)
    for word in ("abort", "pause"):
        assert await wish(db, rollout, word)
    assert (await advance(context, rollout.id)).state == RolloutState.ABORTED


async def test_a_step_and_a_writer_of_routes_and_audit_do_not_block_each_other(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await begin(db, world, context)
    await fill(db, rollout, 400)
    async with db.transaction() as other:
        await routes.lock(other)
        moving = asyncio.create_task(advance(context, rollout.id))
        await blocked(db)
        await other.execute(text("set local lock_timeout = '2s'"))
        await audit.append(other, actor="test", event="x", subject="x", data={})
    assert (await moving).weight == 1.0


async def test_going_back_twice_does_not_return_to_the_bad_release(db: Database) -> None:
    world = await make_world(db)
    context = make_context(db)
    async with db.transaction() as connection:
        await set_stable(connection, world, world.candidate)
    await roll_back_release(DirectRun(new_id("prop"), context), world.use_case)
    assert await serving(db, world.use_case) == world.stable
    with pytest.raises(PipelineError, match="nothing to go back to"):
        await roll_back_release(DirectRun(new_id("prop"), context), world.use_case)
    assert await serving(db, world.use_case) == world.stable


async def test_a_rollback_that_is_resumed_late_undoes_nothing_newer(db: Database) -> None:
    world = await make_world(db)
    run = DirectRun(new_id("prop"), make_context(db))
    async with db.transaction() as connection:
        third = await make_release(connection, world.use_case, "thrift", "third", "0.000001", "0.000002")
        await set_stable(connection, world, world.candidate)
    done = await roll_back_release(run, world.use_case)
    async with db.transaction() as connection:
        await set_stable(connection, world, third)
    assert await roll_back_release(run, world.use_case) == done
    assert await serving(db, world.use_case) == third


async def test_three_in_a_row_are_gone_back_one_by_one(db: Database) -> None:
    world = await make_world(db)
    context = make_context(db)
    async with db.transaction() as connection:
        third = await make_release(connection, world.use_case, "thrift", "third", "0.000001", "0.000002")
        await set_stable(connection, world, world.candidate)
        await set_stable(connection, world, third)
    for expected in (world.candidate, world.stable):
        await roll_back_release(DirectRun(new_id("prop"), context), world.use_case)
        assert await serving(db, world.use_case) == expected


async def test_a_run_that_begins_late_does_not_trust_old_evidence(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    async with db.transaction() as connection:
        other = await make_release(connection, world.use_case, "lab", "other", "0.000001", "0.000002")
        await set_stable(connection, world, other)
    with pytest.raises(PipelineError, match="serves no longer"):
        await start_rollout(DirectRun(new_id("prop"), context), world.use_case, world.candidate)


async def test_looks_that_see_nothing_new_leave_no_measurements(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await begin(db, world, context)
    await fill(db, rollout, 4)
    for _ in range(5):
        await advance(context, rollout.id)
    async with db.connection() as connection:
        assert len(await rollouts.measurements(connection, rollout.id)) == 1


async def test_a_forgotten_wish_is_not_blamed_for_a_pause(db: Database) -> None:
    plan = {**PLAN, "canary": [{**step, "max_wait_seconds": 0.01} for step in PLAN["canary"]]}
    world = await make_world(db, plan=plan)
    context = make_context(db)
    rollout = await begin(db, world, context)
    await wish(db, rollout, "resume")
    paused = await advance(context, rollout.id)
    assert paused.state == RolloutState.PAUSED
    assert "a person" not in (paused.reason or "")


async def test_a_look_at_a_hundred_thousand_answers_is_quick(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    rollout = await begin(db, world, make_context(db))
    await fill(db, rollout, 100_000)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - before)

    ticking = asyncio.create_task(tick())
    async with db.connection() as connection:
        began = time.perf_counter()
        found = await analyse(connection, rollout, clock.now())
        took = time.perf_counter() - began
        began = time.perf_counter()
        await find_alert(connection, world.use_case, world.stable, clock.now())
        alert_took = time.perf_counter() - began
    ticking.cancel()
    print(f"look {took:.2f} s, alert {alert_took:.2f} s, the loop stood still for {longest:.2f} s at most")
    assert found is not None
    assert took < 20
    assert alert_took < 2


def test_many_failures_cost_as_many_steps_and_no_more() -> None:
    def seconds(count: int) -> float:
        bet, began = RestartingLabelBet(), time.process_time()
        for number in range(count):
            bet.failure(candidate=number % 2 == 0, weight=0.5)
        assert bet.e_value >= 0
        return time.process_time() - began

    seconds(500)
    assert seconds(16_000) < 20 * max(seconds(2_000), 0.001)
