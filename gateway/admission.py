"""From a request's headers and body to the deployment that will answer, or a refusal that helps.

Fills the call in as far as it gets, so that a refused request can be logged with what was known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.chat_request import conversation_of, split_model, user_of
from gateway.errors import ApiError, too_large, unknown_model
from gateway.interaction import CHARACTERS_PER_TOKEN, DEFAULT_SERVING, Call, Target, fallback_target
from gateway.keys import EVALUATE, INFER, PIN, callable_use_cases, demand_scope, may_call
from gateway.limits import Claim, Limiter
from gateway.metrics import Metrics
from gateway.routing import choose_arm, choose_unit
from storage.routing import RoutingSnapshot
from storage.vocabulary import InteractionKind


def choose_use_case(
    call: Call, body: Mapping[str, Any], snapshot: RoutingSnapshot, scope: str = INFER, purpose: str = ""
) -> str | None:
    """Note in the call which use case is meant, if its key may call it; the release that is pinned."""
    demand_scope(call.key, scope, purpose or "call a model")
    model, use_case, release = split_model(body)
    if use_case not in snapshot.routes or not may_call(call.key, use_case):
        raise unknown_model(model, callable_use_cases(snapshot, call.key))
    call.model, call.use_case = model, use_case
    call.serving = snapshot.servings.get(use_case, DEFAULT_SERVING)
    return release


def check_size(call: Call, size: int) -> None:
    """Refuse a body that the use case finds too long; the gateway's and the key's own limits came before."""
    limit = call.serving.limits.max_body_bytes
    if limit is not None and size > limit:
        raise too_large(limit)


def note_people(call: Call, body: dict[str, Any]) -> None:
    """Note whom the call is made for, and in which conversation."""
    call.user = user_of(body)
    call.conversation = conversation_of(body)


def draw(call: Call, snapshot: RoutingSnapshot) -> Target:
    """The target by the route of the call's use case."""
    assert call.use_case is not None
    route = call.route = snapshot.routes[call.use_case]
    unit = choose_unit(route.assignment_unit, conversation=call.conversation, user=call.user, request=call.id)
    drawn = choose_arm(route, unit)
    if drawn is None:
        text = (
            f"Use case '{route.use_case}' has no model yet. Ask the operator to give its route a stable arm."
        )
        raise ApiError(503, text, "overloaded_error", "no_route", "model")
    arm = drawn.arm
    return Target(arm.release_id, arm.deployment, arm.arm, drawn.weight, drawn.unit, drawn.control)


def pin(call: Call, snapshot: RoutingSnapshot, release: str, purpose: bytes | None) -> Target:
    """The target that the caller names; nothing diverts such a call."""
    demand_scope(call.key, PIN, "ask for one exact release")
    found = snapshot.releases.get(release)
    if found is None or found.use_case != call.use_case:
        text = f"'{release}' is no release of use case '{call.use_case}'. Leave out '@...'."
        raise ApiError(404, text, code="model_not_found", param="model")
    if purpose == b"evaluation" and EVALUATE in call.key.scopes:
        call.kind = InteractionKind.EVALUATION
    return Target(release, found.deployment, None)


def take_allowance(call: Call, limiter: Limiter, now: float, raw_size: int) -> None:
    """Count the call against the limits of its key and use case. Raises ``ApiError`` (429)."""
    estimate = raw_size // CHARACTERS_PER_TOKEN + _length_wanted(call)
    call.ticket = limiter.admit(now, call.at.date(), claims_of(call), estimate)


def _length_wanted(call: Call) -> int:
    """The tokens that the answer may have, as far as the caller says; no more than it will be lowered to."""
    body = call.body or {}
    wanted = body.get("max_completion_tokens") or body.get("max_tokens")
    if not isinstance(wanted, int) or wanted <= 0:
        return 0
    limits = (call.key.limits.max_tokens, call.serving.limits.max_tokens)
    return min(wanted, *(each for each in limits if each is not None), wanted)


def within_budget(call: Call, target: Target, metrics: Metrics) -> Target:
    """Whoever is cheap enough, once a budget is spent. A pinned call is never diverted."""
    ticket = call.ticket
    if ticket is None or not (ticket.alerts or ticket.downgrade):
        return target
    for alert in ticket.alerts:
        metrics.count_over_budget(alert.subject, alert.period)
    if ticket.downgrade and target.arm is not None and call.serving.downgrade is not None:
        return fallback_target(call.serving.downgrade)
    return target


def claims_of(call: Call) -> tuple[Claim, Claim]:
    """Whose limits a call counts against."""
    return (f"key:{call.key.id}", call.key.limits), (f"use_case:{call.use_case}", call.serving.limits)
