"""What waits for a person, and what the agent did and will do next."""

from __future__ import annotations

from datetime import timedelta

from meta_agent.reading.fleet import read_rollouts
from meta_agent.reading.models import (
    AgentRead,
    ApprovalRead,
    CycleRead,
    EvaluationCaseRead,
    EvaluationDetail,
    EvaluationRead,
    ProposalRead,
    RolloutRead,
    WaitingRead,
)
from meta_agent.refusals import not_found
from meta_agent.settings import Settings
from storage import audit, decisions, evaluations, flags, proposals, rollouts, use_cases
from storage.clock import now
from storage.database import Connection
from storage.evaluations import EvaluationCase
from storage.proposals import Proposal
from storage.vocabulary import EvaluationStatus, ProposalStatus


async def get_proposal(connection: Connection, proposal_id: str) -> Proposal:
    """The proposal; refuses when there is none."""
    found = await proposals.find(connection, proposal_id)
    if found is None:
        raise not_found("proposal", proposal_id)
    return found


async def read_waiting(connection: Connection, proposal: Proposal) -> WaitingRead:
    """A proposal with the words spoken on it and how many are needed."""
    verdict = proposal.verdict or {}
    spoken = await proposals.list_approvals(connection, proposal.id)
    return WaitingRead(
        **ProposalRead.model_validate(proposal).model_dump(),
        binding_digest=proposal.binding_digest,
        approvals=[ApprovalRead.model_validate(each) for each in spoken],
        approvals_needed=int(verdict.get("approvals_needed") or 0),
        roles=[str(role) for role in verdict.get("roles") or []],
    )


async def list_waiting(connection: Connection) -> list[WaitingRead]:
    """The approval queue, the longest waiting first."""
    found = await proposals.list_proposals(connection, statuses=[ProposalStatus.WAITING])
    moment = now()
    return [await read_waiting(connection, each) for each in reversed(found) if each.expires_at > moment]


async def read_agent(connection: Connection, settings: Settings, last: int = 10) -> AgentRead:
    """The agent's state of affairs."""
    paused = bool(await flags.get(connection, flags.AGENT_PAUSED, False))
    pause = (await audit.list_rows(connection, event="agent.paused", limit=1)) if paused else []
    cycles = await decisions.list_cycles(connection, last)
    interval = timedelta(seconds=settings.agent.interval_seconds)
    return AgentRead(
        paused=paused,
        paused_by=pause[0].actor if pause else None,
        paused_at=pause[0].at if pause else None,
        planner=settings.agent.chosen_planner,
        model=settings.agent.model,
        autonomy=settings.agent.autonomy,
        interval_seconds=settings.agent.interval_seconds,
        last_cycles=[CycleRead.model_validate(each) for each in cycles],
        next_cycle_at=cycles[0].started_at + interval if cycles and not paused else None,
        next=await _next(connection, paused),
    )


async def _next(connection: Connection, paused: bool) -> list[str]:
    lines = ["Paused: it looks and records, and starts nothing by itself."] if paused else []
    for use_case in await use_cases.list_all(connection):
        active = await rollouts.active(connection, use_case.name)
        if active is not None:
            lines.append(_next_of_rollout((await read_rollouts(connection, [active]))[0]))
        running = await evaluations.list_evaluations(connection, use_case.name, limit=5)
        lines += [
            f"{use_case.name}: finish evaluation, {each.cases_done} of {each.cases_planned} cases done."
            for each in running
            if each.status == EvaluationStatus.RUNNING
        ]
    executing = await proposals.list_proposals(connection, statuses=[ProposalStatus.PROPOSED])
    lines += [f"{each.use_case or 'fleet'}: carry on the proposal to {each.tool}." for each in executing[:5]]
    return lines


def _next_of_rollout(rollout: RolloutRead) -> str:
    name = f"{rollout.use_case}: {rollout.candidate.model}"
    if rollout.state == "paused":
        return f"{name} is paused and waits for a person."
    at = next((index for index, step in enumerate(rollout.steps) if step.status == "current"), -1)
    following = rollout.steps[at + 1] if at + 1 < len(rollout.steps) else None
    goal = f"go on to {following.label}" if following else "promote"
    why = str(rollout.analysis.get("why") or "waiting for traffic")
    return f"{name} will {goal} when the evidence allows; now: {why}."


async def get_evaluation(connection: Connection, evaluation_id: str) -> EvaluationDetail:
    """An evaluation with its cases, worst first; refuses when there is none."""
    found = await evaluations.find(connection, evaluation_id)
    if found is None:
        raise not_found("evaluation", evaluation_id)
    cases = sorted(await evaluations.list_cases(connection, evaluation_id), key=badness)
    return EvaluationDetail(
        **EvaluationRead.model_validate(found).model_dump(),
        cases=[EvaluationCaseRead.model_validate(case) for case in cases],
    )


def badness(case: EvaluationCase) -> tuple[int, float, str]:
    """Sorts cases worst first: the candidate failed where stable passed, failed, disagrees, the rest."""
    candidate = (case.candidate_result or {}).get("passed")
    stable = (case.stable_result or {}).get("passed")
    if candidate is False:
        rank = 0 if stable else 1
    elif candidate is None:
        rank = 4
    else:
        rank = 2 if case.agrees is False else 3
    return rank, case.lexical_similarity if case.lexical_similarity is not None else 1.0, case.id
