"""Planners: from facts and signals to a plan, with the checks that no planner can walk around.

A plan names tools and ids only. Whatever planner wrote it, each action is held against the facts by
:func:`refusal` before anything is proposed; policy judges it after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from meta_agent.fleet_facts import FleetFacts, Refusal, UseCaseFacts, target_of
from meta_agent.signals import Signal, SignalKind, proven
from policies.policy import OBSERVING_TOOLS, Autonomy
from storage.vocabulary import ProposalStatus

#: A plan with more than this is not a plan but a flood.
MAX_ACTIONS = 3
#: What each tool is asked with. The menu ends here, for every planner.
MENU: Mapping[str, frozenset[str]] = {
    "scan": frozenset(),
    "rank": frozenset({"use_case"}),
    "test": frozenset({"use_case", "offering_id"}),
    "deploy": frozenset({"use_case", "release_id"}),
    "rollback": frozenset({"use_case"}),
    "abort": frozenset({"rollout_id"}),
}


@dataclass(frozen=True, kw_only=True)
class PlannedAction:
    """What a planner wants done, why, and what it expects to come of it."""

    tool: str
    arguments: dict[str, str]
    reason: str
    prediction: dict[str, Any] | None = None
    alternatives: tuple[dict[str, Any], ...] = ()

    @property
    def target(self) -> str | None:
        """What it is about, beside the use case."""
        return target_of(self.arguments)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept with the cycle."""
        return {
            "tool": self.tool,
            "arguments": self.arguments,
            "reason": self.reason,
            "prediction": self.prediction,
            "alternatives": list(self.alternatives),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlannedAction:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "alternatives": tuple(data["alternatives"])})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a planner made of the facts."""

    planner: str
    actions: tuple[PlannedAction, ...]
    summary: str
    #: Why nothing is done about a use case (or, under None, the fleet) that had signals.
    holds: dict[str | None, str] = field(default_factory=dict)


class Planner(Protocol):
    """Somebody who plans: rules, or a language model."""

    async def plan(self, facts: FleetFacts, signals: tuple[Signal, ...]) -> Plan:
        """What to do about these signals. Never raises for a world that it does not understand."""


def refusal(facts: FleetFacts, action: PlannedAction) -> str | None:
    """Why an action is not to be proposed now; None if nothing speaks against it."""
    return _not_on_the_menu(facts, action) or _unknown_id(facts, action) or held(facts, action)


def _not_on_the_menu(facts: FleetFacts, action: PlannedAction) -> str | None:
    wanted = MENU.get(action.tool)
    if wanted is None:
        return "there is no such tool"
    if frozenset(action.arguments) != wanted:
        return f"{action.tool} takes {', '.join(sorted(wanted)) or 'no arguments'}"
    return None


def _unknown_id(facts: FleetFacts, action: PlannedAction) -> str | None:
    if action.tool == "scan":
        return None
    if action.tool == "abort":
        active = {each.active_rollout.rollout_id for each in facts.use_cases if each.active_rollout}
        return None if action.target in active else "no such rollout is under way"
    use_case = facts.use_case(action.arguments["use_case"])
    if use_case is None:
        return "there is no such use case"
    if action.tool == "test" and action.target not in _offerings(use_case):
        return "the offering is not a candidate of the newest ranking"
    if action.tool == "deploy" and action.target not in {each.release_id for each in proven(use_case)}:
        return "there is no fresh passed evaluation of such a release that was not rolled out before"
    if action.tool == "rollback" and (use_case.stable is None or not use_case.stable.rollback_release_id):
        return "there is nothing to roll back to"
    return None


def _offerings(use_case: UseCaseFacts) -> set[str]:
    return {each.offering_id for each in use_case.ranking.candidates} if use_case.ranking else set()


def held(facts: FleetFacts, action: PlannedAction) -> str | None:
    """Why an action that makes sense must wait: it is under way, was refused, or is not the agent's now."""
    if facts.paused:
        return "the agent is paused"
    return (
        _beyond_autonomy(facts, action)
        or _already_open(facts, action)
        or _still_refused(facts, action)
        or _busy(facts, action)
    )


def _beyond_autonomy(facts: FleetFacts, action: PlannedAction) -> str | None:
    use_case = _use_case_of(facts, action)
    autonomy = use_case.autonomy if use_case else facts.autonomy
    if autonomy is Autonomy.OBSERVE and action.tool not in OBSERVING_TOOLS:
        return "the agent only observes here"
    return None


def _use_case_of(facts: FleetFacts, action: PlannedAction) -> UseCaseFacts | None:
    if action.tool == "abort":
        return next(
            (
                each
                for each in facts.use_cases
                if each.active_rollout and each.active_rollout.rollout_id == action.target
            ),
            None,
        )
    return facts.use_case(action.arguments.get("use_case", ""))


def _already_open(facts: FleetFacts, action: PlannedAction) -> str | None:
    use_case = action.arguments.get("use_case")
    for each in facts.open_proposals:
        same = each.target == action.target if action.tool == "abort" else each.use_case == use_case
        if each.tool == action.tool and same:
            state = "is waiting for approval" if each.status is ProposalStatus.WAITING else "is under way"
            return f"a {each.tool} {state}"
    return None


def _still_refused(facts: FleetFacts, action: PlannedAction) -> str | None:
    for each in facts.refusals:
        if _forbids(each, action):
            return f"the same {each.tool} was {each.status.value}; it is asked again in " + _duration(
                each.remaining_seconds
            )
    return None


def _forbids(each: Refusal, action: PlannedAction) -> bool:
    if each.tool != action.tool:
        return False
    if action.tool == "abort":
        return each.target == action.target
    if each.use_case != action.arguments.get("use_case"):
        return False
    # What denies one test (budget, rate, a pause) denies the next one too; trying every offering in
    # turn would be the same question again.
    return each.target == action.target or (each.tool == "test" and each.status is ProposalStatus.DENIED)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _busy(facts: FleetFacts, action: PlannedAction) -> str | None:
    use_case = _use_case_of(facts, action)
    if use_case is None or action.tool not in ("test", "deploy", "rollback"):
        return None
    if use_case.active_rollout is not None:
        return "a rollout is under way"
    if action.tool == "deploy" and use_case.deploy_cooldown_seconds > 0:
        return f"the last rollout is cooling down for another {_duration(use_case.deploy_cooldown_seconds)}"
    if action.tool == "test" and _is_open(facts, "deploy", use_case.name):
        return "a deploy is not decided yet, and it changes what a test compares with"
    return None


def _is_open(facts: FleetFacts, tool: str, use_case: str) -> bool:
    return any(each.tool == tool and each.use_case == use_case for each in facts.open_proposals)


#: Signals that say where something stands and ask for nothing.
INFORMATION = frozenset({SignalKind.ROLLOUT_RUNNING})
