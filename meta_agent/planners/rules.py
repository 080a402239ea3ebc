"""The rules: a deterministic planner, and what every other planner falls back to.

One action a use case and turn, the most urgent first: a degraded release, then a proven candidate,
then an old ranking, then an untested candidate. Knows nothing of policy: what it proposes is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from meta_agent.fleet_facts import FleetFacts
from meta_agent.planner import INFORMATION, MAX_ACTIONS, Plan, PlannedAction, refusal
from meta_agent.signals import Signal, SignalKind

_URGENCY = (
    SignalKind.STABLE_DEGRADED,
    SignalKind.CATALOGUE_STALE,
    SignalKind.CANDIDATE_PROVEN,
    SignalKind.CATALOGUE_CHANGED,
    SignalKind.CHEAPER_CANDIDATE_UNTESTED,
)


class RulesPlanner:
    """Plans by rules alone."""

    name = "rules"

    async def plan(self, facts: FleetFacts, signals: tuple[Signal, ...]) -> Plan:
        """What the rules make of these signals."""
        return plan_by_rules(facts, signals)


def plan_by_rules(facts: FleetFacts, signals: tuple[Signal, ...]) -> Plan:
    """The same facts and signals give the same plan."""
    actions: list[PlannedAction] = []
    holds: dict[str | None, str] = {}
    for use_case, own in _by_use_case(signals):
        action, why_not = _first(facts, own)
        if action is None:
            holds[use_case] = why_not or _nothing_to_do(own)
        elif len(actions) < MAX_ACTIONS:
            actions.append(action)
        else:
            holds[use_case] = "other use cases come first in this cycle"
    return Plan(planner="rules", actions=tuple(actions), summary=_summary(actions, holds), holds=holds)


def _by_use_case(signals: tuple[Signal, ...]) -> Iterator[tuple[str | None, list[Signal]]]:
    """The fleet first, then use cases in the order of their most urgent signal."""
    groups: dict[str | None, list[Signal]] = {}
    for signal in sorted(signals, key=lambda each: (not each.alert, each.use_case is not None)):
        groups.setdefault(signal.use_case, []).append(signal)
    yield from groups.items()


def _first(facts: FleetFacts, signals: list[Signal]) -> tuple[PlannedAction | None, str | None]:
    """The first action that nothing speaks against, else why the most urgent one is not taken."""
    why_not = None
    wished = [(signal, _answer(signal, signals)) for signal in _urgent(signals)]
    for signal, action in wished:
        said = refusal(facts, action)
        if said is None:
            return action, None
        why_not = why_not or f"{action.tool}: {said}"
        if signal.alert:
            break
    return None, why_not


def _urgent(signals: list[Signal]) -> list[Signal]:
    wanted = [
        signal
        for signal in signals
        # Without proof of harm policy would not let a rollback go, and rightly so.
        if signal.kind in _URGENCY and (signal.alert or signal.kind is not SignalKind.STABLE_DEGRADED)
    ]
    return sorted(wanted, key=lambda signal: _URGENCY.index(signal.kind))


def _answer(signal: Signal, among: Iterable[Signal]) -> PlannedAction:
    use_case, subject = signal.use_case or "", signal.subject or ""
    match signal.kind:
        case SignalKind.CATALOGUE_STALE:
            tool, arguments = "scan", dict[str, str]()
        case SignalKind.CATALOGUE_CHANGED:
            tool, arguments = "rank", {"use_case": use_case}
        case SignalKind.CHEAPER_CANDIDATE_UNTESTED:
            tool, arguments = "test", {"use_case": use_case, "offering_id": subject}
        case SignalKind.CANDIDATE_PROVEN:
            tool, arguments = "deploy", {"use_case": use_case, "release_id": subject}
        case _:
            tool, arguments = "rollback", {"use_case": use_case}
    return PlannedAction(
        tool=tool,
        arguments=arguments,
        reason=signal.sentence,
        prediction=_prediction(signal),
        alternatives=_alternatives(signal, among),
    )


def _prediction(signal: Signal) -> dict[str, float | str] | None:
    saving = signal.numbers.get("saving_share")
    match signal.kind:
        case SignalKind.CANDIDATE_PROVEN | SignalKind.CHEAPER_CANDIDATE_UNTESTED if saving is not None:
            return {"saving_share": saving}
        case SignalKind.STABLE_DEGRADED:
            return {"failure_rate_below": signal.numbers["limit"]}
        case _:
            return None


def _alternatives(chosen: Signal, among: Iterable[Signal]) -> tuple[dict[str, Any], ...]:
    """What else could have been done about the same use case, and doing nothing."""
    others = [_answer(each, ()) for each in _urgent(list(among)) if each is not chosen]
    return (
        *({"tool": each.tool, "arguments": each.arguments, "reason": each.reason} for each in others),
        {"tool": None, "reason": "do nothing"},
    )


def _nothing_to_do(signals: list[Signal]) -> str:
    if all(signal.kind in INFORMATION for signal in signals):
        return "it is under way"
    return "nothing on the menu would help"


def _summary(actions: list[PlannedAction], holds: dict[str | None, str]) -> str:
    said = [" ".join((each.tool, *each.arguments.values())) for each in actions]
    said += [f"{use_case or 'fleet'}: {why}" for use_case, why in holds.items()]
    return "; ".join(said) or "Nothing to do."
