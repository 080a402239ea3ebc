"""From a request's headers and body to the deployment that will answer, or a refusal that helps.

Fills the call in as far as it gets, so that a refused request can be logged with what was known.
"""

from __future__ import annotations

from gateway.chat_request import parse_body, parse_chat, split_model
from gateway.errors import ApiError, unknown_model
from gateway.interaction import Call, Target
from gateway.keys import EVALUATE, INFER, PIN, callable_use_cases, demand_scope, may_call
from gateway.routing import choose_arm, choose_unit
from storage.routes import KeyRecord, RoutingSnapshot
from storage.vocabulary import InteractionKind


def admit(call: Call, key: KeyRecord, snapshot: RoutingSnapshot, raw: bytes, purpose: bytes | None) -> Target:
    """Decide who answers this body."""
    demand_scope(key, INFER, "call a model")
    call.body = parse_body(raw)
    model, use_case, release = split_model(call.body)
    if use_case not in snapshot.routes or not may_call(key, use_case):
        raise unknown_model(model, callable_use_cases(snapshot, key))
    call.use_case = use_case
    call.chat = parse_chat(call.body)
    if release is None:
        return _draw(call, snapshot)
    return _pin(call, key, snapshot, release, purpose)


def _draw(call: Call, snapshot: RoutingSnapshot) -> Target:
    assert call.chat is not None
    route = call.route = snapshot.routes[call.chat.use_case]
    unit = choose_unit(
        route.assignment_unit, conversation=call.chat.conversation, user=call.chat.user, request=call.id
    )
    assignment = choose_arm(route, unit)
    if assignment is None:
        text = (
            f"Use case '{route.use_case}' has no model yet. Ask the operator to give its route a stable arm."
        )
        raise ApiError(503, text, "overloaded_error", "no_route", "model")
    arm = assignment.arm
    return Target(arm.release_id, arm.deployment, arm.arm, assignment.weight, assignment.unit)


def _pin(
    call: Call, key: KeyRecord, snapshot: RoutingSnapshot, release: str, purpose: bytes | None
) -> Target:
    assert call.chat is not None
    demand_scope(key, PIN, "ask for one exact release")
    found = snapshot.releases.get(release)
    if found is None or found[0] != call.chat.use_case:
        text = f"'{release}' is no release of use case '{call.chat.use_case}'. Leave out '@...'."
        raise ApiError(404, text, code="model_not_found", param="model")
    if purpose == b"evaluation" and EVALUATE in key.scopes:
        call.kind = InteractionKind.EVALUATION
    return Target(release, found[1], None)
