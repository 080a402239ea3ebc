"""One turn of the agent: observe, assess, decide, record.

Every node reads the cycle's row, does its part unless that is there already, and writes it back: a node
that runs again after a crash finds what it did and doubles nothing. The plan is kept before anything is
proposed, since a language model would not write the same one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from meta_agent import monitors
from meta_agent.fleet_facts import FleetFacts
from meta_agent.graphs.world import ACTOR, RETRY, World
from meta_agent.planner import INFORMATION, PlannedAction
from meta_agent.signals import Signal, assess
from storage import clock, decisions, events
from storage.database import Connection, lock_in_transaction
from storage.decisions import Cycle
from tools.contract import ToolArgumentsError, UnknownToolError
from tools.propose import propose_in


class CycleState(TypedDict, total=False):
    """Ids only."""

    cycle_id: str
    outcome: str


async def _read(world: World, state: CycleState) -> Cycle:
    async with world.database.connection() as connection:
        cycle = await decisions.find_cycle(connection, state["cycle_id"])
    if cycle is None:
        raise RuntimeError(f"there is no cycle {state['cycle_id']}")
    return cycle


async def _write(world: World, cycle: Cycle, **values: Any) -> None:
    async with world.database.transaction() as connection:
        await decisions.update_cycle(connection, cycle.id, **values)


async def observe(state: CycleState, runtime: Runtime[World]) -> CycleState:
    """Look at the fleet."""
    world, cycle = runtime.context, await _read(runtime.context, state)
    if cycle.facts is None:
        facts = await monitors.observe(world.database, world.settings, world.context.policy, clock.now())
        await _write(world, cycle, facts=facts.to_json(), facts_digest=facts.digest)
    return {"outcome": "observed"}


async def assess_facts(state: CycleState, runtime: Runtime[World]) -> CycleState:
    """Say what the facts mean."""
    cycle = await _read(runtime.context, state)
    if cycle.signals is None:
        signals = assess(FleetFacts.model_validate(cycle.facts))
        await _write(runtime.context, cycle, signals=[each.to_json() for each in signals])
    return {"outcome": "assessed"}


async def decide(state: CycleState, runtime: Runtime[World]) -> CycleState:
    """Let the planner plan."""
    world, cycle = runtime.context, await _read(runtime.context, state)
    if cycle.plan is None:
        plan = await world.planner.plan(FleetFacts.model_validate(cycle.facts), _signals(cycle))
        kept = {
            "actions": [each.to_json() for each in plan.actions],
            "holds": [{"use_case": use_case, "reason": why} for use_case, why in plan.holds.items()],
        }
        await _write(world, cycle, plan=kept, planner=plan.planner, summary=plan.summary)
    return {"outcome": "decided"}


def _signals(cycle: Cycle) -> tuple[Signal, ...]:
    return tuple(Signal.from_json(each) for each in cycle.signals or ())


async def record(state: CycleState, runtime: Runtime[World]) -> CycleState:
    """Propose what was planned, keep the decisions, and close the cycle."""
    world, cycle = runtime.context, await _read(runtime.context, state)
    plan = cycle.plan or {"actions": [], "holds": []}
    for number, action in enumerate(plan["actions"]):
        await _propose(world, cycle, number, PlannedAction.from_json(action))
    for hold in plan["holds"]:
        await _hold(world, cycle, hold["use_case"], hold["reason"])
    await _close(world, cycle, proposed=len(plan["actions"]))
    return {"outcome": "recorded"}


async def _propose(world: World, cycle: Cycle, number: int, action: PlannedAction) -> None:
    """Proposal and decision in one transaction: a second run sees both, or neither."""
    use_case = action.arguments.get("use_case")
    common: dict[str, Any] = {
        "actor": ACTOR,
        "reason": action.reason,
        "signals": _about(_signals(cycle), use_case),
        "alternatives": action.alternatives,
        "action": {"number": number, "tool": action.tool, "arguments": action.arguments},
        "prediction": action.prediction,
        "cycle_id": cycle.id,
    }
    async with world.database.transaction() as connection:
        if await _is_recorded(connection, cycle, number):
            return
        try:
            proposal = await propose_in(
                connection,
                world.context.policy,
                tool=action.tool,
                arguments=action.arguments,
                proposer=ACTOR,
                reason=action.reason,
                cycle_id=cycle.id,
                expires_in=timedelta(hours=world.settings.agent.approval_hours),
            )
        except (ToolArgumentsError, UnknownToolError) as error:
            refused = {"outcome": "refused", "why": str(error)}
            await decisions.record(connection, **common, use_case=use_case, verdict=refused)
            return
        await decisions.record(
            connection,
            **common,
            use_case=proposal.use_case,
            proposal_id=proposal.id,
            verdict=proposal.verdict,
        )


def _about(signals: Sequence[Signal], use_case: str | None) -> list[dict[str, Any]]:
    return [each.to_json() for each in signals if each.use_case in (use_case, None)]


async def _is_recorded(connection: Connection, cycle: Cycle, number: int) -> bool:
    # Two workers never run one cycle, but a lock that was lost with its connection must not double it.
    await lock_in_transaction(connection, f"cycle:{cycle.id}")
    known = await decisions.list_decisions(connection, cycle_id=cycle.id)
    return any(each.action is not None and each.action.get("number") == number for each in known)


async def _hold(world: World, cycle: Cycle, use_case: str | None, reason: str) -> None:
    """Keep why nothing is done, once for each new situation and not at every tick."""
    signals = [each for each in _signals(cycle) if each.use_case == use_case]
    if all(each.kind in INFORMATION for each in signals):
        return
    async with world.database.transaction() as connection:
        await lock_in_transaction(connection, f"cycle:{cycle.id}")
        last = await decisions.last_inaction(connection, ACTOR, use_case)
        if last is not None and _situation(last.signals) == _situation([each.to_json() for each in signals]):
            return
        await decisions.record(
            connection,
            actor=ACTOR,
            reason=f"Do nothing, because: {reason}",
            signals=[each.to_json() for each in signals],
            cycle_id=cycle.id,
            use_case=use_case,
        )


def _situation(signals: Sequence[dict[str, Any]]) -> set[tuple[str, str | None]]:
    return {(each["kind"], each.get("subject")) for each in signals}


async def _close(world: World, cycle: Cycle, proposed: int) -> None:
    if cycle.ended_at is not None:
        return
    async with world.database.transaction() as connection:
        await decisions.update_cycle(connection, cycle.id, ended_at=clock.now())
        await events.publish(
            connection,
            kind="cycle.finished",
            subject=cycle.id,
            data={
                "trigger": cycle.trigger,
                "planner": cycle.planner,
                "signals": len(cycle.signals or ()),
                "proposals": proposed,
                "summary": cycle.summary,
            },
        )


def build_cycle() -> StateGraph[CycleState, World, CycleState, CycleState]:
    """Version 1. The names of the nodes are part of every stored thread: never rename one."""
    graph = StateGraph(CycleState, context_schema=World)
    for name, node in (
        ("observe", observe),
        ("assess", assess_facts),
        ("decide", decide),
        ("record", record),
    ):
        graph.add_node(name, node, retry_policy=RETRY)
    graph.add_edge(START, "observe")
    graph.add_edge("observe", "assess")
    graph.add_edge("assess", "decide")
    graph.add_edge("decide", "record")
    graph.add_edge("record", END)
    return graph
