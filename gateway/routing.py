"""Which arm answers: pure functions over one route.

The same unit meets the same arm for as long as a rollout lasts, and keeps it while the candidate's
weight only grows, so that a reader does not change storytellers in the middle of a story.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from storage.routing import Route, RouteArm
from storage.vocabulary import Arm, AssignmentUnit


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who was drawn for one request, and how likely a candidate was at that moment."""

    arm: RouteArm
    unit: str
    weight: float  #: the candidate's, whichever arm was drawn: evidence is weighed by it
    control: bool  #: a stable unit of the control group, which is as large as the candidate's


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
    every new model. The candidate takes units from the lower end and its control group, at the same
    time and of the same size, those at the upper end: a growing candidate never meets who was control
    before it takes half of all.
    """
    stable, candidate = route.find(Arm.STABLE), route.find(Arm.CANDIDATE)
    weight = candidate.weight if candidate is not None else 0.0
    if candidate is None or weight <= 0:
        return Assignment(stable, unit, 0.0, False) if stable else None
    if stable is None:
        return Assignment(candidate, unit, weight, False)
    point = point_of(route.salt, unit)
    if point < weight:
        return Assignment(candidate, unit, weight, False)
    return Assignment(stable, unit, weight, point >= 1 - weight)


def is_mirrored(route: Route, request_id: str) -> bool:
    """Whether a request is copied to the shadow. Drawn per request and apart from the arms."""
    shadow = route.find(Arm.SHADOW)
    return shadow is not None and point_of(f"{route.salt}:shadow", request_id) < shadow.weight


def point_of(salt: str, unit: str) -> float:
    """Where a unit falls in [0, 1).

    >>> point_of("ro_1", "c1") == point_of("ro_1", "c1") != point_of("ro_2", "c1")
    True
    """
    digest = hashlib.blake2b(f"{salt}:{unit}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # exact: a rounded quotient may reach 1
