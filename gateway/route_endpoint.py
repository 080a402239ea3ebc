"""POST /v1/route: the choice without the call, for an orchestration service that calls the model itself.

It is told whom to call and with what; never a provider's key. The ticket stands for the interaction:
feedback on it says later how the call went.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import orjson

from gateway.admission import choose_use_case, draw, note_people, pin, take_allowance, within_budget
from gateway.breaker import BreakerState
from gateway.chat_request import parse_body
from gateway.errors import ApiError
from gateway.http_message import Reply, Request
from gateway.interaction import Call, Outcome, Target, fallback_target
from gateway.keys import ROUTE
from gateway.limits import clamp_tokens
from gateway.replies import send_error, send_json
from gateway.retrying import line_of
from gateway.services import Services
from gateway.tracing import trace_of
from storage.routing import DeploymentSpec
from storage.vocabulary import InteractionKind, InteractionStatus

_VALID = timedelta(seconds=60)


class RouteEndpoint:
    """The handler; one for the life of the process."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Draw, log that the caller took the route, and say who was drawn."""
        call = Call(key=request.admitted, surface="route", kind=InteractionKind.ROUTED)
        headers = [(b"x-request-id", call.id.encode())]
        try:
            target = self._draw(call, request)
        except ApiError as error:
            self._services.metrics.count_refusal(error.code or str(error.status))
            send_error(reply, error, headers)
            return
        taken = Outcome(InteractionStatus.HANDED_OVER, 200, latency_seconds=call.elapsed)
        taken.overhead_seconds = taken.latency_seconds
        self._services.record(call, target, taken)
        if call.ticket is not None:
            headers += self._services.limiter.headers(call.ticket)
            call.settle(self._services.time(), None)
        send_json(reply, 200, orjson.dumps(self._route(call, target)), headers)

    def _draw(self, call: Call, request: Request) -> Target:
        services = self._services
        snapshot = services.snapshot()
        call.body = parse_body(request.body)
        release = choose_use_case(call, call.body, snapshot, ROUTE, "take a route")
        note_people(call, call.body)
        call.trace = trace_of(request.headers.get(b"traceparent"), begin=services.config.traces)
        target = pin(call, snapshot, release, None) if release is not None else draw(call, snapshot)
        take_allowance(call, services.limiter, services.time(), 0)
        return self._in_order(call, within_budget(call, target, services.metrics))

    def _in_order(self, call: Call, target: Target) -> Target:
        """The target, or the next in line while it is left alone for failing."""
        if self._is_well(target.deployment):
            return target
        line = line_of(target.arm, call.route, call.serving.fallbacks, {target.deployment.id})
        well = next((each for each in line if self._is_well(each.deployment)), None)
        return target if well is None else fallback_target(well)

    def _is_well(self, deployment: DeploymentSpec) -> bool:
        state = self._services.breakers.of(deployment.id).state(self._services.time())
        return state is BreakerState.CLOSED

    def _route(self, call: Call, target: Target) -> dict[str, Any]:
        deployment, limits = target.deployment, (call.key.limits, call.serving.limits)
        provider = self._services.config.providers.get(deployment.provider)
        expires: datetime = call.at + _VALID
        return {
            "object": "route",
            "ticket": call.id,
            "use_case": call.use_case,
            "release": target.release_id,
            "deployment": deployment.id,
            "variant": target.variant,
            "provider": deployment.provider,
            "kind": provider.kind if provider else None,
            "base_url": (provider.base_url or None) if provider else None,
            "model": deployment.model,
            "parameters": clamp_tokens(deployment.parameters, *limits, unnamed="max_tokens"),
            "system_prompt": deployment.system_prompt,
            "expires_at": expires.isoformat(),
        }
