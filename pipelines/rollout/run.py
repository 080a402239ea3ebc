"""The rollout, carried out: look at the evidence, ask what follows, and do it in one transaction.

Level-triggered: everything depends on the rollout's row and on what gateways logged, so that a worker that
dies at any instruction is followed by one that reads the same rows and goes on. Each transition is a
compare-and-swap on the row's epoch, together with its route, its audit row and its measurement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pipelines.context import Context, PipelineError, Run
from pipelines.rollout import ending
from pipelines.rollout.analysis import Analysis, analyse_canary, analyse_shadow
from pipelines.rollout.next_action import Action, OperatorRequest, next_action
from pipelines.rollout.plan import RolloutPlan
from pipelines.rollout.votes import Row, pairs_from, votes_from
from policies.policy import Policy
from storage import audit, clock, deployments, evaluations, interactions, rollouts, routes, use_cases
from storage.database import Connection, DatabaseUnavailable
from storage.interactions import Outcome
from storage.rollouts import Rollout
from storage.routes import ArmSetting
from storage.vocabulary import Arm, AssignmentUnit, InteractionStatus, RolloutState

log = logging.getLogger(__name__)

#: One durable step watches for at most this long, so that the run's memory shows that it lives.
_WATCH_SECONDS = 60.0
#: A look that took long is followed by a pause this many times as long: the worker has other runs to serve.
_PAUSE_PER_LOOK = 4.0
#: So many looks in a row may break before the run gives up; ``orphans`` then gives traffic back to stable.
_BROKEN_LOOKS = 5
#: How long a new route may take to reach every gateway before that is worth an event.
_ACKNOWLEDGE_SECONDS = 10.0


async def run_deploy(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Roll a release out to its end: promoted, rolled back or aborted."""
    use_case, release_id = str(arguments["use_case"]), str(arguments["release_id"])
    rollout_id = await run.step("start", lambda: start_rollout(run, use_case, release_id))
    turn = 0
    while True:
        outcome = await run.step(f"watch-{turn}", lambda: _watch(run.context, rollout_id))
        turn += 1
        if outcome["final"]:
            return {
                "succeeded": outcome["state"] == RolloutState.PROMOTED,
                "rollout_id": rollout_id,
                "state": outcome["state"],
                "reason": outcome["reason"],
            }


def rollout_id_of(run_id: str) -> str:
    """A run starts one rollout, however often it is resumed."""
    return "ro_" + run_id.partition("_")[2]


async def start_rollout(run: Run, use_case_name: str, release_id: str) -> str:
    """Plan the rollout of a run, once. Raises :class:`PipelineError` when it can no longer begin."""
    rollout_id = rollout_id_of(run.id)
    async with run.context.database.transaction() as connection:
        if await rollouts.find(connection, rollout_id):
            return rollout_id
        await ending.lock_traffic(connection, use_case_name)
        use_case = await use_cases.find(connection, use_case_name)
        route = await routes.current_route(connection, use_case_name)
        stable = route.release_of(Arm.STABLE) if route else None
        candidate = await deployments.find_release(connection, release_id)
        if use_case is None or stable is None or candidate is None or candidate.use_case != use_case_name:
            raise PipelineError(f"{release_id} cannot be rolled out: use case, route or release is not there")
        if stable == release_id:
            raise PipelineError(f"{release_id} already serves {use_case_name}")
        await _refuse_old_evidence(connection, candidate.evaluation_id, stable)
        plan = plan_for(use_case)
        try:
            await rollouts.create(
                connection,
                use_case=use_case_name,
                candidate_release_id=release_id,
                stable_release_id=stable,
                plan=plan.to_json(),
                proposal_id=run.id,
                rollout_id=rollout_id,
            )
        except rollouts.RolloutRunningError as error:
            raise PipelineError(str(error)) from error
        await audit.append(
            connection,
            actor=f"run:{run.id}",
            event="rollout.started",
            subject=rollout_id,
            data={
                "use_case": use_case_name,
                "candidate": {
                    "release_id": release_id,
                    "provider": candidate.provider,
                    "model": candidate.model,
                },
                "stable_release_id": stable,
                "plan": plan.to_json(),
            },
        )
    return rollout_id


async def _refuse_old_evidence(connection: Connection, evaluation_id: str | None, stable: str) -> None:
    """The run may start long after it was judged, and something else may have become stable meanwhile."""
    evaluation = await evaluations.find(connection, evaluation_id) if evaluation_id else None
    if evaluation is not None and evaluation.stable_release_id != stable:
        raise PipelineError(f"{evaluation.id} compares with a release that serves no longer; test again")


def plan_for(use_case: use_cases.UseCase) -> RolloutPlan:
    """The default plan with what the settings changed for this use case."""
    return RolloutPlan.from_json({**use_case.rollout_plan, "unit": use_case.assignment_unit})


async def _watch(context: Context, rollout_id: str) -> dict[str, Any]:
    """Look again and again until the rollout moves, ends, or a while has passed."""
    until, broken = time.monotonic() + _WATCH_SECONDS, 0
    while True:
        began = time.monotonic()
        try:
            rollout = await advance(context, rollout_id)
        except (PipelineError, *DatabaseUnavailable):
            raise
        except Exception:
            broken += 1
            if broken >= _BROKEN_LOOKS:
                raise
            log.exception("%s: look %d of %d broke", rollout_id, broken, _BROKEN_LOOKS)
        else:
            broken, state = 0, RolloutState(rollout.state)
            if state.is_final or time.monotonic() >= until:
                return {"state": state, "final": state.is_final, "reason": rollout.reason}
        await asyncio.sleep(max(context.poll_seconds, _PAUSE_PER_LOOK * (time.monotonic() - began)))


async def advance(context: Context, rollout_id: str) -> Rollout:
    """Take one look, and at most one transition. Harmless to repeat; returns the rollout as it stands."""
    async with context.database.connection() as connection:
        rollout = await _get(connection, rollout_id)
        if RolloutState(rollout.state).is_final:
            return rollout
        analysis = await analyse(connection, rollout, clock.now())
    async with context.database.transaction() as connection:
        # Locked: a person's wish that arrives meanwhile waits, and is not wiped out by this transition.
        current = await _get(connection, rollout_id, lock=True)
        if current.epoch != rollout.epoch:
            return current
        action = _decide(context.policy, current, analysis, clock.now())
        version = await _carry_out(connection, context, current, analysis, action)
    if version is not None:
        await _acknowledged(context, rollout_id, version)
    async with context.database.connection() as connection:
        return await _get(connection, rollout_id)


async def _get(connection: Connection, rollout_id: str, *, lock: bool = False) -> Rollout:
    rollout = await rollouts.find(connection, rollout_id, lock=lock)
    if rollout is None:
        raise PipelineError(f"there is no rollout {rollout_id}")
    return rollout


# --- evidence -------------------------------------------------------------------------


async def analyse(connection: Connection, rollout: Rollout, now: datetime) -> Analysis | None:
    """What the gateways' log says of the step that the rollout stands on. None before the first."""
    plan = RolloutPlan.from_json(rollout.plan)
    state = RolloutState(rollout.resume_state or rollout.state)
    waited = (now - rollout.step_started_at).total_seconds() if rollout.step_started_at else 0.0
    if state is RolloutState.SHADOW:
        pairs = await interactions.shadow_pairs(connection, rollout.id)
        return await asyncio.to_thread(_analyse_pairs, pairs, plan, waited)
    if state is RolloutState.CANARY:
        live = await interactions.canary_outcomes(connection, rollout.id)
        # Beside the loop: with much traffic this takes seconds.
        return await asyncio.to_thread(_analyse_votes, live, plan, rollout.step, waited)
    return None


def _analyse_pairs(pairs: Iterable[tuple[Outcome, Outcome]], plan: RolloutPlan, waited: float) -> Analysis:
    return analyse_shadow(pairs_from(row for pair in pairs for row in _pair_rows(*pair)), plan, waited)


def _analyse_votes(live: Iterable[Outcome], plan: RolloutPlan, step: int, waited: float) -> Analysis:
    return analyse_canary(votes_from(_row(each) for each in live), plan, step, waited)


def _row(interaction: Outcome, *, arm: Arm | None = None, pair: str | None = None) -> Row:
    return Row(
        unit=interaction.unit or interaction.id,
        arm=arm or Arm(interaction.arm or Arm.STABLE),
        weight=interaction.weight or 0.0,
        status=InteractionStatus(interaction.status),
        at=interaction.at,
        latency_ms=interaction.latency_ms,
        cost_usd=None if interaction.cost_usd is None else float(interaction.cost_usd),
        finding=interaction.flagged,
        pair=pair,
    )


def _pair_rows(original: Outcome, copy: Outcome) -> tuple[Row, Row]:
    return (
        _row(original, arm=Arm.STABLE, pair=original.id),
        _row(copy, arm=Arm.SHADOW, pair=original.id),
    )


def _decide(policy: Policy, rollout: Rollout, analysis: Analysis | None, now: datetime) -> Action:
    return next_action(
        RolloutPlan.from_json(rollout.plan),
        RolloutState(rollout.state),
        rollout.step,
        analysis.phase if analysis else None,
        OperatorRequest(rollout.requested) if rollout.requested else None,
        may_increase=not _blacked_out(policy, rollout.use_case, now),
    )


def _blacked_out(policy: Policy, use_case: str, now: datetime) -> bool:
    windows = policy.base.blackouts + policy.rules_for(use_case).blackouts
    return any(window.covers(now.astimezone(policy.zone)) for window in windows)


# --- effects --------------------------------------------------------------------------


async def _carry_out(
    connection: Connection, context: Context, rollout: Rollout, analysis: Analysis | None, action: Action
) -> int | None:
    """Do what follows within the caller's transaction; returns the version of a new route."""
    kept = analysis.to_json() if analysis else rollout.analysis
    if analysis is not None and (action is not Action.HOLD or _numbers(kept) != _numbers(rollout.analysis)):
        await _measure(connection, rollout, analysis)
    if action is Action.HOLD:
        if kept != rollout.analysis:
            await rollouts.transition(connection, rollout, analysis=kept)
        return None
    if action is Action.NEXT_STEP:
        return await _next_step(connection, rollout, kept)
    if action is Action.PAUSE:
        asked = rollout.requested == OperatorRequest.PAUSE
        why = "a person asked for a pause" if asked else (analysis.why if analysis else "")
        changes: dict[str, Any] = {"state": RolloutState.PAUSED, "resume_state": rollout.state, "reason": why}
        await _move(connection, rollout, "rollout.paused", why, analysis=kept, **changes)
        return None
    if action is Action.RESUME:
        changes = {"state": str(rollout.resume_state), "resume_state": None, "step_started_at": clock.now()}
        await _move(connection, rollout, "rollout.resumed", "a person resumed it", analysis=kept, **changes)
        return None
    return await ending.end(connection, context.policy, rollout, action, analysis)


def _numbers(kept: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a chart would show. The sentence beside it may count seconds, which is nothing new."""
    return kept.get("phase"), kept.get("metrics")


async def _measure(connection: Connection, rollout: Rollout, analysis: Analysis) -> None:
    metrics = [metric.to_json() for metric in analysis.metrics]
    summary = {
        "name": "all",
        "e_value": analysis.e_value,
        "threshold": analysis.threshold,
        "why": analysis.why,
    }
    await rollouts.record_measurement(connection, rollout, analysis.phase, [*metrics, summary])


async def _next_step(connection: Connection, rollout: Rollout, analysis: Mapping[str, Any]) -> int | None:
    plan = RolloutPlan.from_json(rollout.plan)
    state = RolloutState(rollout.state)
    if state is RolloutState.PLANNED and plan.shadow is not None:
        changes: dict[str, Any] = {"state": RolloutState.SHADOW, "step": 0, "weight": 0.0}
        shadow = ArmSetting(Arm.SHADOW, rollout.candidate_release_id, plan.shadow.share)
        arms, why = [ArmSetting(Arm.STABLE, rollout.stable_release_id, 1.0), shadow], "shadow"
    else:
        step = rollout.step + 1 if state is RolloutState.CANARY else 0
        weight = plan.canary[step].weight
        changes = {"state": RolloutState.CANARY, "step": step, "weight": weight}
        arms = [
            ArmSetting(Arm.STABLE, rollout.stable_release_id, 1 - weight),
            ArmSetting(Arm.CANDIDATE, rollout.candidate_release_id, weight),
        ]
        why = f"{weight:.0%}"
    # Locks are taken in one order everywhere: the rollout, the routes, the audit.
    await routes.lock(connection)
    moved = await _move(
        connection,
        rollout,
        "rollout.step",
        why,
        analysis=dict(analysis),
        step_started_at=clock.now(),
        **changes,
    )
    if not moved:
        return None
    route = await routes.set_route(
        connection,
        use_case=rollout.use_case,
        arms=arms,
        assignment_unit=AssignmentUnit(plan.unit),
        reason=f"rollout {rollout.id}: {why}",
        created_by=f"rollout:{rollout.id}",
        rollout_id=rollout.id,
    )
    return route.version


async def _move(connection: Connection, rollout: Rollout, event: str, why: str, **changes: Any) -> bool:
    """A transition with its audit row; a person's wish is taken with it."""
    if not await rollouts.transition(connection, rollout, requested=None, **changes):
        return False
    await audit.append(
        connection,
        actor=f"rollout:{rollout.id}",
        event=event,
        subject=rollout.id,
        data={
            "use_case": rollout.use_case,
            "from": rollout.state,
            "to": changes["state"],
            "weight": changes.get("weight", rollout.weight),
            "why": why,
        },
    )
    return True


async def _acknowledged(context: Context, rollout_id: str, version: int) -> None:
    """See that the weight was really set: every live gateway says that it serves the new route."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _ACKNOWLEDGE_SECONDS
    while True:
        async with context.database.connection() as connection:
            lagging = await routes.lagging_gateways(connection, version)
        if not lagging:
            return
        if loop.time() >= until:
            log.warning("%s: gateways %s do not serve route version %d yet", rollout_id, lagging, version)
            return
        await asyncio.sleep(0.1)


async def run_abort(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Stop a rollout and see it end."""
    rollout_id = str(arguments["rollout_id"])
    await run.step("request", lambda: _request_abort(run.context, rollout_id))
    state = await run.step("ended", lambda: _until_ended(run.context, rollout_id))
    return {"rollout_id": rollout_id, "state": state, "succeeded": state != RolloutState.PROMOTED}


async def _request_abort(context: Context, rollout_id: str) -> bool:
    async with context.database.transaction() as connection:
        return await rollouts.request(connection, rollout_id, OperatorRequest.ABORT)


async def _until_ended(context: Context, rollout_id: str) -> str:
    """Wait for the end, and bring it about if the run that watches the rollout is not there to do it."""
    while True:
        rollout = await advance(context, rollout_id)
        if RolloutState(rollout.state).is_final:
            return rollout.state
        await asyncio.sleep(context.poll_seconds)


async def run_rollback(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give all traffic of a use case back to the last good release."""
    return await run.step("roll-back", lambda: ending.roll_back_release(run, str(arguments["use_case"])))
