"""Which arm answers: pure functions over one route.

The same unit meets the same arm for as long as a rollout lasts, and keeps it while the candidate's
weight only grows, so that a reader does not change storytellers in the middle of a story.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from storage.routes import Route, RouteArm
from storage.vocabulary import Arm, AssignmentUnit


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who was drawn for one request, and how likely a candidate was at that moment."""

    arm: RouteArm
    unit: str
    weight: float  #: the candidate's, whichever arm was drawn: evidence is weighed by it


def choose_unit(unit: AssignmentUnit, *, conversation: str | None, user: str | None, request: str) -> str:
    """What is assigned as a whole. Without a conversation it is the user, then the request."""
    if unit is AssignmentUnit.CONVERSATION:
        return conversation or user or request
    if unit is AssignmentUnit.USER:
        return user or request
    return request


def choose_arm(route: Route, unit: str) -> Assignment | None:
    """Draw the arm for a unit; None if the route has no stable arm.

    Salted with the rollout: otherwise the same tenth of the readers would be the first to meet
    every new model.
    """
    stable, candidate = route.find(Arm.STABLE), route.find(Arm.CANDIDATE)
    if candidate is None or candidate.weight <= 0:
        return Assignment(stable, unit, 0.0) if stable else None
    if stable is None or point_of(route.salt, unit) < candidate.weight:
        return Assignment(candidate, unit, candidate.weight)
    return Assignment(stable, unit, candidate.weight)


def is_mirrored(route: Route, request_id: str) -> bool:
    """Whether a request is copied to the shadow. Drawn per request and apart from the arms."""
    shadow = route.find(Arm.SHADOW)
    return shadow is not None and point_of(f"{route.salt}:shadow", request_id) < shadow.weight


def point_of(salt: str, unit: str) -> float:
    """Where a unit falls in [0, 1).

    >>> point_of("ro_1", "c1") == point_of("ro_1", "c1") != point_of("ro_2", "c1")
    True
    """
    digest = hashlib.sha256(f"{salt}:{unit}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # exact: a rounded quotient may reach 1
