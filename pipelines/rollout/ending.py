"""How a rollout ends, and how a use case goes back to its last good release."""

from __future__ import annotations

from typing import Any

from pipelines.context import PipelineError, Run
from pipelines.rollout.analysis import Analysis
from pipelines.rollout.next_action import Action
from policies.engine import judge
from policies.facts import Facts
from policies.policy import Policy
from storage import audit, clock, decisions, deployments, interactions, rollouts, routes, use_cases
from storage.database import Connection, lock_in_transaction
from storage.rollouts import Rollout
from storage.routes import ArmSetting, RouteRow
from storage.vocabulary import Arm, AssignmentUnit, Risk, RolloutState, Severity

_ENDS = {
    Action.PROMOTE: RolloutState.PROMOTED,
    Action.ROLL_BACK: RolloutState.ROLLED_BACK,
    Action.ABORT: RolloutState.ABORTED,
}


async def lock_traffic(connection: Connection, use_case: str) -> None:
    """Serialise what begins to move a use case's traffic, so that each sees what the other one did."""
    await lock_in_transaction(connection, f"traffic:{use_case}")


async def end(
    connection: Connection,
    policy: Policy,
    rollout: Rollout,
    action: Action,
    analysis: Analysis | None,
    because: str | None = None,
) -> int | None:
    """End a rollout within the caller's transaction; returns the version of the route that stands now.

    The way back is part of what was judged and approved with the deployment; it is judged once more as an
    abort with an open alert, and that verdict is kept with the reasons.
    """
    state = _ENDS[action]
    why = because or {
        Action.PROMOTE: "every step succeeded",
        Action.ABORT: "a person asked for it",
    }.get(action, analysis.why if analysis else "the analysis failed")
    moment = clock.now()
    changes: dict[str, Any] = {"state": state, "reason": why, "ended_at": moment, "requested": None}
    changes["weight"] = 1.0 if action is Action.PROMOTE else 0.0
    if analysis is not None:
        changes["analysis"] = analysis.to_json()
    if not await rollouts.transition(connection, rollout, **changes):
        return None
    winner = rollout.candidate_release_id if action is Action.PROMOTE else rollout.stable_release_id
    route = await _all_to(
        connection, rollout.use_case, winner, f"rollout {rollout.id}: {state}", f"rollout:{rollout.id}"
    )
    await deployments.mark_stable(connection, winner)
    verdict = await _verdict(connection, policy, rollout, action)
    await _explain(connection, rollout, action, analysis, why, verdict)
    await audit.append(
        connection,
        actor=f"rollout:{rollout.id}",
        event=f"rollout.{state}",
        subject=rollout.id,
        data={
            "use_case": rollout.use_case,
            "from": rollout.state,
            "weight": rollout.weight,
            "why": why,
            "serving": winner,
            "proposal_id": rollout.proposal_id,
            "verdict": verdict,
        },
    )
    return route.version


async def _all_to(
    connection: Connection, use_case: str, release_id: str, reason: str, created_by: str
) -> RouteRow:
    found = await use_cases.find(connection, use_case)
    return await routes.set_route(
        connection,
        use_case=use_case,
        arms=[ArmSetting(Arm.STABLE, release_id, 1.0)],
        assignment_unit=AssignmentUnit(found.assignment_unit) if found else AssignmentUnit.CONVERSATION,
        reason=reason,
        created_by=created_by,
    )


async def _verdict(
    connection: Connection, policy: Policy, rollout: Rollout, action: Action
) -> dict[str, Any] | None:
    if action is Action.PROMOTE:
        return None
    use_case = await use_cases.find(connection, rollout.use_case)
    facts = Facts(
        now=clock.now(),
        use_case=rollout.use_case,
        risk=Risk(use_case.risk) if use_case else Risk.HIGH,
        # The analysis carries out what was agreed with the deployment; it is not the agent's new idea.
        proposer_is_agent=False,
        agent_paused=False,
        actions_last_day=0,
        rollout_active=True,
        alert_open=action is Action.ROLL_BACK,
    )
    return {**judge(policy, "abort", facts).to_json(), "facts": facts.to_json()}


async def _explain(
    connection: Connection,
    rollout: Rollout,
    action: Action,
    analysis: Analysis | None,
    why: str,
    verdict: dict[str, Any] | None,
) -> None:
    """An automatic way back leaves an incident and a decision with its reasons."""
    if action is not Action.ROLL_BACK:
        return
    metrics = [metric.to_json() for metric in analysis.metrics] if analysis else []
    candidate = await deployments.find_release(connection, rollout.candidate_release_id)
    name = f"{candidate.provider}/{candidate.model}" if candidate else rollout.candidate_release_id
    where = "in the shadow" if rollout.weight == 0 else f"at {rollout.weight:.0%} of traffic"
    await interactions.record_incident(
        connection,
        use_case=rollout.use_case,
        category="rollout_rolled_back",
        severity=Severity.HIGH,
        summary=f"{name} was rolled back {where}: {why}",
        intervention="rolled_back",
        release_id=rollout.candidate_release_id,
        rollout_id=rollout.id,
        details={"metrics": metrics, "why": why},
    )
    await decisions.record(
        connection,
        actor=f"rollout:{rollout.id}",
        reason=f"{name} {where}: {why}. The stable release answers again.",
        signals=[{"kind": "rollout_failed", "use_case": rollout.use_case, "metrics": metrics}],
        alternatives=[
            {"action": "hold", "why_not": "the evidence against the candidate has passed its threshold"},
            {"action": "go on", "why_not": "users would meet a candidate that is proven worse"},
        ],
        action={"tool": "abort", "arguments": {"rollout_id": rollout.id}},
        verdict=verdict,
        use_case=rollout.use_case,
    )


async def roll_back_release(run: Run, use_case: str) -> dict[str, Any]:
    """Make the release before the current one stable again. Done twice, it goes back once."""
    reason = f"rollback {run.id}"
    async with run.context.database.transaction() as connection:
        await lock_traffic(connection, use_case)
        history = await routes.route_history(connection, use_case)
        current = history[0].release_of(Arm.STABLE) if history else None
        if current is None:
            raise PipelineError(f"{use_case} has no route to go back from")
        # Not only the newest: a worker that died here may be followed after something else was rolled out.
        done = next((row for row in history if row.created_by == f"run:{run.id}"), None)
        if done is not None:
            serving = done.release_of(Arm.STABLE)
            return {"use_case": use_case, "serving": serving, "route_revision": done.revision}
        active = await rollouts.active(connection, use_case)
        if active is not None:
            raise PipelineError(f"rollout {active.id} is under way; abort it instead")
        target = await deployments.previous_stable(connection, use_case, than=current)
        if target is None:
            raise PipelineError(f"{use_case} has served nothing else before; there is nothing to go back to")
        new = await _all_to(connection, use_case, target.id, reason, f"run:{run.id}")
        await interactions.record_incident(
            connection,
            use_case=use_case,
            category="release_rolled_back",
            severity=Severity.HIGH,
            summary=f"{use_case} went back to {target.provider}/{target.model}",
            intervention="rolled_back",
            release_id=current,
            details={"proposal_id": run.id},
        )
        await audit.append(
            connection,
            actor=f"run:{run.id}",
            event="route.set",
            subject=use_case,
            data={"use_case": use_case, "from": current, "serving": target.id, "reason": reason},
        )
        return {"use_case": use_case, "serving": target.id, "route_revision": new.revision}
