"""The life of one proposal: guard, wait for people, guard again, act, record.

The interrupt only wakes: what people said is read from their rows, and policy is asked again after every
wake and once more next to the effect, by ``pipelines.actions``. Nothing here decides anything.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt

from meta_agent.graphs.world import RETRY, World
from pipelines import actions
from storage import proposals
from storage.vocabulary import ProposalStatus

_AFTER_GUARD: dict[str, Literal["wait", "act", "record"]] = {
    ProposalStatus.WAITING: "wait",
    "approved": "act",
}


class ActionState(TypedDict, total=False):
    """Ids only."""

    proposal_id: str
    outcome: str


async def guard(state: ActionState, runtime: Runtime[World]) -> Command[Literal["wait", "act", "record"]]:
    """Ask policy, and read what people said."""
    said = str(await actions.guard(runtime.context.context, state["proposal_id"]))
    return Command(update={"outcome": said}, goto=_AFTER_GUARD.get(said, "record"))


async def wait(state: ActionState) -> Command[Literal["guard"]]:
    """Sleep until somebody wakes the thread; what woke it carries no authority."""
    interrupt({"proposal_id": state["proposal_id"], "kind": "approval"})
    return Command(goto="guard")


async def act(state: ActionState, runtime: Runtime[World]) -> Command[Literal["wait", "record"]]:
    """Start the durable run, if policy and approvals still hold at this moment."""
    said = str(await actions.execute(runtime.context.context, state["proposal_id"]))
    return Command(update={"outcome": said}, goto="wait" if said == ProposalStatus.WAITING else "record")


async def record(state: ActionState, runtime: Runtime[World]) -> ActionState:
    """Note where the proposal stands. The run that was started writes its outcome itself when it ends."""
    async with runtime.context.database.connection() as connection:
        proposal = await proposals.find(connection, state["proposal_id"])
    return {"outcome": proposal.status if proposal else "gone"}


def build_action() -> StateGraph[ActionState, World, ActionState, ActionState]:
    """Version 1. The names of the nodes are part of every stored thread: never rename one."""
    graph = StateGraph(ActionState, context_schema=World)
    graph.add_node("guard", guard, retry_policy=RETRY)
    graph.add_node("wait", wait)
    graph.add_node("act", act, retry_policy=RETRY)
    graph.add_node("record", record, retry_policy=RETRY)
    graph.add_edge(START, "guard")
    graph.add_edge("record", END)
    return graph
