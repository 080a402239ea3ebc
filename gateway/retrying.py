"""What is asked next when a deployment failed: it again, the next in line, or nobody. Pure rules.

Asking twice may cost twice and do twice: the same deployment is asked again only when it surely did
nothing yet. Another one may be asked as long as no byte has left and the caller still waits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import CALLERS_FAULT, ConnectError, UpstreamError
from storage.routing import Fallback, Route, Waiting
from storage.vocabulary import Arm

#: Answers of somebody in front of the model, or of a model that takes no more: nothing was begun.
_NOTHING_DONE = frozenset({502, 503, 529})
_TOO_MANY = 429
#: Longer than this a caller is not kept waiting for the same deployment.
_SHORT_SECONDS = 1.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A deployment failed a call: all that the next step depends on."""

    error: UpstreamError
    attempts: int  #: at this deployment so far, this one included
    arm: Arm | None  #: the one that was drawn for the call; None: a pinned release
    elapsed: float  #: seconds since the call arrived
    waiting: Waiting
    began: bool = False  #: a byte of the answer has left
    may_ask_again: bool = True  #: the deployment's breaker is closed


class Again(NamedTuple):
    """Ask the same deployment after a pause."""

    seconds: float


class AskNext(NamedTuple):
    """Ask the next deployment in line, at once."""

    fallback: Fallback


class GiveUp(NamedTuple):
    """Tell the caller."""


GIVE_UP = GiveUp()
Step = Again | AskNext | GiveUp


def next_step(failure: Failure, line: Sequence[Fallback], random: float) -> Step:
    """What follows a failure. ``line``: whom :func:`line_of` leaves; ``random``: in [0, 1).

    Only live arms have somebody in line: a pinned release and a shadow are asked for their own sake.
    """
    if failure.began or failure.error.status in CALLERS_FAULT:
        return GIVE_UP
    total = failure.waiting.total_seconds
    left = math.inf if total is None else total - failure.elapsed
    if left <= 0:
        return GIVE_UP
    pause = _pause(failure, random)
    if pause is not None and pause < left:
        return Again(pause)
    is_diverted = failure.arm in (Arm.STABLE, Arm.CANDIDATE)
    return AskNext(line[0]) if line and is_diverted else GIVE_UP


def line_of(
    arm: Arm | None, route: Route | None, fallbacks: Sequence[Fallback], asked: Collection[str] = ()
) -> tuple[Fallback, ...]:
    """Who may answer after the one that was drawn: stable for a candidate, then the use case's fallbacks.

    ``asked``: ids of deployments that had their turn. None is asked twice, under whatever release.
    """
    if route is None or arm not in (Arm.STABLE, Arm.CANDIDATE):
        return ()
    stable = route.find(Arm.STABLE) if arm is Arm.CANDIDATE else None
    line = [Fallback(stable.release_id, stable.deployment)] if stable else []
    found: dict[str, Fallback] = {}
    for each in (*line, *fallbacks):
        if each.deployment.id not in asked:
            found.setdefault(each.deployment.id, each)
    return tuple(found.values())


def _pause(failure: Failure, random: float) -> float | None:
    """Seconds until the same deployment is asked again; None: not at all."""
    if failure.attempts > failure.waiting.retries or not failure.may_ask_again:
        return None
    error = failure.error
    header = getattr(error, "retry_after", None)
    told = seconds_of(header)
    if header is not None and told is None:
        return None  # it names a date: nobody is kept waiting for one
    if error.status == _TOO_MANY:
        is_safe = told is not None
    else:
        is_safe = isinstance(error, ConnectError) or error.status in _NOTHING_DONE
    if not is_safe or (told or 0.0) > _SHORT_SECONDS:
        return None
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (failure.attempts - 1))
    return (told or 0.0) + random * longest


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds of a retry-after header; None if there is none, or if it names a date.

    >>> [seconds_of(each) for each in ("2", " 0.5 ", "-1", "soon", "nan", None)]
    [2.0, 0.5, 0.0, None, None, None]
    """
    try:
        seconds = float(retry_after) if retry_after is not None else math.nan
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
