"""The next action of a rollout, said and not done.

Level-triggered: the answer depends on the recorded state and never on the event that woke
us, so asking twice, late, or after a crash gives the same answer. ``run`` carries it out.
"""

from __future__ import annotations

from enum import StrEnum

from pipelines.rollout.plan import RolloutPlan
from storage.vocabulary import Phase, RolloutState


class Action(StrEnum):
    """What the runner does next."""

    HOLD = "hold"  #: nothing; look again later
    NEXT_STEP = "next_step"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    PAUSE = "pause"
    ABORT = "abort"
    RESUME = "resume"


class OperatorRequest(StrEnum):
    """What a person asked of a running rollout."""

    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"


def next_action(
    plan: RolloutPlan,
    state: RolloutState,
    step: int,
    phase: Phase | None,
    request: OperatorRequest | None = None,
    *,
    may_increase: bool = True,
) -> Action:
    """Turn where the rollout stands into what happens next.

    ``step`` is the index of the canary step; ``phase`` the analysis of the current step (None:
    nothing analysed yet); ``may_increase`` is false in a blackout, which stops increases and
    promotions but never the way back. Evidence of harm counts in a paused rollout too. A
    measurement that could not be taken only holds: a monitoring outage is no evidence against
    the candidate, and the analysis itself turns it into inconclusive when it lasts.

    >>> plan = RolloutPlan()
    >>> phases = (Phase.SUCCESSFUL, Phase.ERROR, Phase.FAILED, Phase.INCONCLUSIVE)
    >>> [next_action(plan, RolloutState.CANARY, 0, phase).value for phase in phases]
    ['next_step', 'hold', 'roll_back', 'pause']
    """
    if state.is_final:
        return Action.HOLD
    if request is OperatorRequest.ABORT:
        return Action.ABORT
    if phase is Phase.FAILED and state is not RolloutState.PLANNED:
        return Action.ROLL_BACK
    if state is RolloutState.PAUSED:
        return Action.RESUME if request is OperatorRequest.RESUME else Action.HOLD
    if request is OperatorRequest.PAUSE:
        return Action.PAUSE
    if state is RolloutState.PLANNED:
        return Action.NEXT_STEP if may_increase else Action.HOLD
    return _by_phase(plan, state, step, phase, may_increase)


def _by_phase(
    plan: RolloutPlan, state: RolloutState, step: int, phase: Phase | None, may_increase: bool
) -> Action:
    if phase is Phase.INCONCLUSIVE:
        return Action.PAUSE
    if phase is not Phase.SUCCESSFUL or not may_increase:
        return Action.HOLD
    if state is RolloutState.CANARY and plan.is_last(step):
        return Action.PROMOTE
    return Action.NEXT_STEP
