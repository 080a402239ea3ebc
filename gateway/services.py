"""What the handlers of one gateway process share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.breaker import Breakers
from gateway.capture import captured
from gateway.detector import Detector
from gateway.errors import ApiError, NotConfiguredError
from gateway.interaction import Bill, Call, Outcome, Target, bill, row_of
from gateway.journal import INTERACTION, Journal
from gateway.limits import Limiter
from gateway.metrics import Metrics
from gateway.provider import Provider
from gateway.route_table import RouteTable
from gateway.settings import GatewayConfig
from storage.routing import RoutingSnapshot


@dataclass(frozen=True, slots=True)
class Services:
    """The parts, wired once by ``gateway.app``."""

    config: GatewayConfig
    table: RouteTable
    journal: Journal
    providers: Mapping[str, Provider]
    detectors: Sequence[Detector]
    metrics: Metrics
    limiter: Limiter
    breakers: Breakers
    pseudonym: Callable[[str], str]  #: of a user's name
    time: Callable[[], float] = time.monotonic  #: seconds of a clock that never jumps; the event loop's own

    def snapshot(self) -> RoutingSnapshot:
        """The routes now; a refusal while there are none at all."""
        snapshot = self.table.snapshot
        if snapshot is None:
            text = (
                "The gateway has no routes yet: its database is away and it never had any. Retry in a moment."
            )
            raise ApiError(503, text, "overloaded_error", "not_ready", retry_after="1")
        return snapshot

    def provider_of(self, target: Target) -> Provider:
        """The adapter that reaches a deployment."""
        name = target.deployment.provider
        provider = self.providers.get(name)
        if provider is None:
            raise NotConfiguredError(f"no provider {name!r} in this gateway's configuration")
        return provider

    def record(self, call: Call, target: Target | None, outcome: Outcome) -> Bill | None:
        """Write down how a call ended; what the answer cost, if a deployment began one."""
        cost = None
        if target is not None and call.body is not None and outcome.text is not None:
            cost = bill(call.body, outcome, target.deployment)
        row = captured(row_of(call, target, outcome, cost), call.serving.capture, self.pseudonym)
        if row is not None:
            self.journal.record(INTERACTION, row)
        self.metrics.count_request(call, target, outcome, cost)
        return cost
