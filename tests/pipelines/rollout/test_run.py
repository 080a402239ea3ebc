"""A rollout on real rows: what gateways would have logged, and the routes that follow from it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from pipelines.context import Context, PipelineError
from pipelines.rollout.ending import roll_back_release
from pipelines.rollout.run import advance, rollout_id_of, start_rollout
from storage import audit, clock, decisions, interactions, rollouts, routes
from storage.database import Database
from storage.ids import new_id
from storage.rollouts import Rollout
from storage.vocabulary import Arm, InteractionKind, InteractionStatus, RolloutState
from tests.factories import World, make_context, make_world

T = TypeVar("T")

PLAN: dict[str, Any] = {
    "shadow": {"share": 1.0, "min_pairs": 10, "max_wait_seconds": 600},
    "canary": [
        {"weight": weight, "min_units": 10, "max_wait_seconds": 600} for weight in (0.1, 0.25, 0.5, 1.0)
    ],
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


async def log(db: Database, rollout: Rollout, arm: Arm, count: int, **values: Any) -> list[str]:
    release = rollout.stable_release_id if arm is Arm.STABLE else rollout.candidate_release_id
    rows: list[Mapping[str, Any]] = [
        {
            "id": new_id("int"),
            "at": clock.now(),
            "kind": InteractionKind.LIVE,
            "use_case": rollout.use_case,
            "rollout_id": rollout.id,
            "arm": arm,
            "release_id": release,
            "weight": rollout.weight,
            "unit": new_id("conversation"),
            "status": InteractionStatus.OK,
            "latency_ms": 100.0,
            "cost_usd": "0.001",
            **values,
        }
        for _ in range(count)
    ]
    await interactions.copy_batch(db, rows)
    return [row["id"] for row in rows]


async def log_shadow(db: Database, rollout: Rollout, count: int, **values: Any) -> None:
    for original in await log(db, rollout, Arm.STABLE, count):
        await log(db, rollout, Arm.SHADOW, 1, kind=InteractionKind.SHADOW, shadow_of=original, **values)


async def start(db: Database, world: World, context: Context) -> Rollout:
    run = DirectRun(new_id("prop"), context)
    rollout_id = await start_rollout(run, world.use_case, world.candidate)
    assert await start_rollout(run, world.use_case, world.candidate) == rollout_id == rollout_id_of(run.id)
    return await advance(context, rollout_id)


async def serving(db: Database, use_case: str) -> dict[str, tuple[str, float]]:
    async with db.connection() as connection:
        route = await routes.current_route(connection, use_case)
    assert route is not None
    return {arm["arm"]: (arm["release_id"], arm["weight"]) for arm in route.arms}


async def to_canary(db: Database, world: World, context: Context) -> Rollout:
    rollout = await start(db, world, context)
    await log_shadow(db, rollout, 12)
    return await advance(context, rollout.id)


async def fill_step(db: Database, context: Context, rollout: Rollout) -> Rollout:
    await log(db, rollout, Arm.CANDIDATE, 12)
    if rollout.weight < 1:
        await log(db, rollout, Arm.STABLE, round(12 * (1 - rollout.weight) / rollout.weight))
    return await advance(context, rollout.id)


async def test_to_the_end_step_by_step(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await start(db, world, context)
    assert rollout.state == RolloutState.SHADOW
    assert await serving(db, world.use_case) == {
        "stable": (world.stable, 1.0),
        "shadow": (world.candidate, 1.0),
    }
    held = await advance(context, rollout.id)
    assert held.state == RolloutState.SHADOW, "no evidence is never success"
    await log_shadow(db, rollout, 12)
    for weight in (0.1, 0.25, 0.5, 1.0):
        rollout = await advance(context, rollout.id)
        assert (rollout.state, rollout.weight) == (RolloutState.CANARY, weight)
        assert (await serving(db, world.use_case))["candidate"] == (world.candidate, weight)
        again = await advance(context, rollout.id)
        assert again.epoch - rollout.epoch <= 1, "looking again moves nothing"
        assert again.weight == weight
        await log(db, rollout, Arm.CANDIDATE, 12)
        await log(db, rollout, Arm.STABLE, round(12 * (1 - weight) / weight))
    rollout = await advance(context, rollout.id)
    assert rollout.state == RolloutState.PROMOTED
    assert await serving(db, world.use_case) == {"stable": (world.candidate, 1.0)}
    async with db.connection() as connection:
        told = [row.event for row in await audit.list_rows(connection, subject=rollout.id)][::-1]
        assert (await audit.verify(connection)).intact
    assert told == ["rollout.started", *["rollout.step"] * 5, "rollout.promoted"]


@pytest.mark.parametrize(
    "harm",
    [
        {"status": InteractionStatus.ERROR},
        {"status": InteractionStatus.BLOCKED, "findings": [{"category": "hate", "pattern": "p"}]},
    ],
)
async def test_harm_in_the_canary_gives_traffic_back(db: Database, harm: dict[str, Any]) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await to_canary(db, world, context)
    await log(db, rollout, Arm.STABLE, 60)
    await log(db, rollout, Arm.CANDIDATE, 7, **harm)
    rollout = await advance(context, rollout.id)
    assert rollout.state == RolloutState.ROLLED_BACK
    assert await serving(db, world.use_case) == {"stable": (world.stable, 1.0)}
    async with db.connection() as connection:
        (decision,) = await decisions.list_decisions(connection, use_case=world.use_case)
        found = await interactions.list_incidents(connection, world.use_case)
    assert decision.verdict is not None
    assert decision.verdict["outcome"] == "allow"
    assert "rolled_back" in {incident.intervention for incident in found}


async def test_harm_in_the_shadow_reaches_nobody(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await start(db, world, context)
    await log_shadow(db, rollout, 25, status=InteractionStatus.ERROR)
    rollout = await advance(context, rollout.id)
    assert rollout.state == RolloutState.ROLLED_BACK
    assert "candidate" not in await serving(db, world.use_case)


async def test_answers_of_the_fallback_do_not_whitewash_the_candidate(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await to_canary(db, world, context)
    await log(db, rollout, Arm.STABLE, 60)
    for _ in range(7):
        unit = new_id("conversation")
        (failed,) = await log(db, rollout, Arm.CANDIDATE, 1, unit=unit, status=InteractionStatus.ERROR)
        await log(db, rollout, Arm.STABLE, 1, unit=unit, fallback_of=failed)
    assert (await advance(context, rollout.id)).state == RolloutState.ROLLED_BACK


async def test_a_person_pauses_resumes_and_aborts(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await to_canary(db, world, context)

    async def wish(word: str) -> Rollout:
        async with db.transaction() as connection:
            assert await rollouts.request(connection, rollout.id, word)
        return await advance(context, rollout.id)

    assert (await wish("pause")).state == RolloutState.PAUSED
    paused = await fill_step(db, context, rollout)
    assert (paused.state, paused.weight) == (RolloutState.PAUSED, 0.1)
    assert (await wish("resume")).state == RolloutState.CANARY
    assert (await advance(context, rollout.id)).weight == 0.25
    assert (await wish("abort")).state == RolloutState.ABORTED
    assert await serving(db, world.use_case) == {"stable": (world.stable, 1.0)}


async def test_thin_traffic_asks_a_person_instead_of_going_on(db: Database) -> None:
    plan = {**PLAN, "shadow": {"share": 1.0, "min_pairs": 10, "max_wait_seconds": 0.01}}
    world = await make_world(db, plan=plan)
    context = make_context(db)
    rollout = await start(db, world, context)
    await log_shadow(db, rollout, 2)
    paused = await advance(context, rollout.id)
    assert paused.state == RolloutState.PAUSED
    assert "2 of 10 pairs" in (paused.reason or "")


async def test_many_workers_take_each_step_once(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await start(db, world, context)
    await log_shadow(db, rollout, 12)
    await asyncio.gather(*(advance(context, rollout.id) for _ in range(6)))
    async with db.connection() as connection:
        steps = await audit.list_rows(connection, subject=rollout.id, event="rollout.step")
        history = await routes.route_history(connection, world.use_case)
    assert len(steps) == 2
    assert len(history) == 3


async def test_one_rollout_at_a_time(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    await start(db, world, context)
    with pytest.raises(PipelineError, match="under way"):
        await start_rollout(DirectRun(new_id("prop"), context), world.use_case, world.candidate)


async def test_rolling_back_a_release_goes_to_the_one_before_and_only_once(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    context = make_context(db)
    rollout = await to_canary(db, world, context)
    for _ in range(4):
        rollout = await fill_step(db, context, rollout)
    assert rollout.state == RolloutState.PROMOTED
    run = DirectRun(new_id("prop"), context)
    done = await roll_back_release(run, world.use_case)
    assert done["serving"] == world.stable
    assert await roll_back_release(run, world.use_case) == done
    assert await serving(db, world.use_case) == {"stable": (world.stable, 1.0)}


async def test_incidents_are_opened_by_the_log_itself(db: Database) -> None:
    world = await make_world(db, plan=PLAN)
    rollout = await to_canary(db, world, make_context(db))
    rows = await log(
        db,
        rollout,
        Arm.CANDIDATE,
        1,
        status=InteractionStatus.BLOCKED,
        findings=[{"category": "suicide_self_harm", "pattern": "x"}],
    )
    async with db.connection() as connection:
        (incident,) = await interactions.list_incidents(
            connection, world.use_case, since=clock.now() - timedelta(minutes=1)
        )
    assert (incident.interaction_id, incident.severity) == (rows[0], "high")
