"""One call and the deployments that are asked for it, with the rule of what is asked again.

A candidate that fails before a byte left is answered for by stable, and keeps the failure in its own
row: whoever was drawn is whom the outcome counts for. Stable is asked twice only when nobody answered
the door. Knows neither plain nor streamed answers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from gateway.answer_guard import AnswerGuard
from gateway.errors import ApiError, UpstreamError, for_caller, is_worth_a_retry
from gateway.interaction import Bill, Call, Outcome, Target
from gateway.provider import Provider
from gateway.services import Services
from gateway.upstream_request import request_for
from storage.ids import new_id
from storage.vocabulary import Arm, InteractionStatus

T = TypeVar("T")
Ask = Callable[[Provider, dict[str, Any]], Awaitable[T]]


class Exchange:
    """The state of one call while it is being answered."""

    def __init__(self, services: Services, call: Call, target: Target) -> None:
        self.services = services
        self.call = call
        self.target = target  #: whoever is being asked now
        self.guard = AnswerGuard(services.detectors, target.deployment.guard_profile)
        self.status: InteractionStatus | None = None  #: once it has ended

    async def ask(self, ask: Ask[T]) -> T:
        """The first good answer, or the last failure."""
        try:
            return await self._ask_once(ask)
        except UpstreamError as error:
            stable = self._stable_instead()
            if stable is not None:
                self._fall_back(error, stable)
            elif not is_worth_a_retry(error) or self.target.arm is Arm.CANDIDATE:
                raise
            return await self._ask_once(ask)

    async def _ask_once(self, ask: Ask[T]) -> T:
        assert self.call.chat is not None
        provider = self.services.provider_of(self.target)
        request = request_for(self.call.chat.body, self.target.deployment, stream=self.call.chat.stream)
        started = time.perf_counter()
        try:
            return await ask(provider, request)
        except UpstreamError:
            self.call.lost_seconds += time.perf_counter() - started
            raise

    def _stable_instead(self) -> Target | None:
        """The stable arm of the same route, if a candidate was asked."""
        if self.target.arm is not Arm.CANDIDATE or self.call.route is None:
            return None
        stable = self.call.route.find(Arm.STABLE)
        if stable is None:
            return None
        return Target(stable.release_id, stable.deployment, Arm.STABLE, self.target.weight, self.target.unit)

    def _fall_back(self, error: UpstreamError, stable: Target) -> None:
        failed = dataclasses.replace(self.call, id=new_id("int"))
        self.services.record(failed, self.target, failure(self.call, error, self.told(error)))
        self.call.fallback_of = failed.id
        self.target = stable
        self.guard = AnswerGuard(self.services.detectors, stable.deployment.guard_profile)

    def told(self, error: UpstreamError) -> ApiError:
        """What the caller is told of a failure of the deployment being asked."""
        return for_caller(error, self.call.use_case or "", self.target.deployment.provider)

    def record(self, outcome: Outcome) -> Bill | None:
        """Write down how the call ended on the deployment that was asked last."""
        self.status = outcome.status
        return self.services.record(self.call, self.target, outcome)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Who answers, for every client to see."""
        target = self.target
        return [
            (b"x-request-id", self.call.id.encode()),
            (b"x-meta-agent-release", target.release_id.encode()),
            (b"x-meta-agent-deployment", target.deployment.id.encode()),
            (b"x-meta-agent-variant", (target.arm or "pinned").encode()),
        ]


def failure(call: Call, error: UpstreamError, told: ApiError, text: str | None = None) -> Outcome:
    """The outcome of a deployment that failed."""
    latency = call.elapsed
    return Outcome(
        status=InteractionStatus.ERROR,
        http_status=told.status,
        text=text,
        error_type=error.code,
        error_message=str(error) or type(error).__doc__,
        latency_seconds=latency,
        overhead_seconds=latency - call.lost_seconds,
    )


def broken(call: Call, error: Exception) -> Outcome:
    """The outcome of a call that we ourselves failed on."""
    return Outcome(
        status=InteractionStatus.ERROR,
        http_status=500,
        error_type="internal",
        error_message=f"{type(error).__name__}: {error}",
        latency_seconds=call.elapsed,
    )


def settle(call: Call, guard: AnswerGuard, payload: dict[str, Any], waited_seconds: float) -> Outcome:
    """The outcome of a whole answer that was led through the guard."""
    latency = call.elapsed
    usage = payload.get("usage")
    return Outcome(
        status=InteractionStatus.BLOCKED if guard.blocked else InteractionStatus.OK,
        http_status=200,
        text=guard.text,
        finish_reason=guard.finish_reason,
        usage=usage if isinstance(usage, dict) else None,
        findings=guard.findings,
        latency_seconds=latency,
        overhead_seconds=latency - waited_seconds - call.lost_seconds,
    )
