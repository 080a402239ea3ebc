"""Sends copies of live requests to a shadow release, after the caller has its answer.

Never on the caller's time, never more than a fixed number at once, within a budget of its own, and
nobody reads the answers but the log: they are guarded, costed and paired with the interaction that
they copy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from gateway.answer_guard import AnswerGuard
from gateway.errors import ApiError, UpstreamError, for_caller
from gateway.exchange import failure, request_of, settled
from gateway.interaction import Call, Target
from gateway.limits import Ticket
from gateway.provider import Terms
from gateway.services import Services
from storage.clock import now
from storage.routing import Limits, ShadowBudget
from storage.vocabulary import Arm, InteractionKind

_log = logging.getLogger(__name__)


class Shadows:
    """The copies in flight."""

    def __init__(self, services: Services, concurrency: int) -> None:
        self._services = services
        self._concurrency = concurrency
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def mirror(self, call: Call, answered_by: Target) -> None:
        """Copy one finished call to its route's shadow, or count that there was no room or no money."""
        shadow = call.route.find(Arm.SHADOW) if call.route else None
        if shadow is None or call.use_case is None:
            return
        budget = call.serving.shadow
        if not self._has_room(call.use_case, budget):
            self._services.metrics.count_shadow_dropped(call.use_case, "no_room")
            return
        ticket = self._take_money(call.use_case, budget)
        if ticket is None:
            self._services.metrics.count_shadow_dropped(call.use_case, "budget_spent")
            return
        target = Target(
            shadow.release_id,
            shadow.deployment,
            Arm.SHADOW,
            shadow.weight,
            answered_by.unit,
            answered_by.control,
        )
        self._start(_copy_of(call, ticket), target)

    def _has_room(self, use_case: str, budget: ShadowBudget) -> bool:
        most = self._concurrency if budget.concurrent is None else budget.concurrent
        return len(self._tasks) < self._concurrency and self._running[use_case] < most

    def _take_money(self, use_case: str, budget: ShadowBudget) -> Ticket | None:
        services = self._services
        claim = (f"shadow:{use_case}", Limits(usd_per_day=budget.usd_per_day))
        try:
            return services.limiter.admit(services.time(), now().date(), (claim,), 0)
        except ApiError:
            return None

    def _start(self, copy: Call, target: Target) -> None:
        use_case = copy.use_case or ""
        task = asyncio.ensure_future(self._ask(copy, target))
        self._tasks.add(task)
        self._running[use_case] += 1

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._running[use_case] -= 1
            if copy.ticket is not None:
                copy.ticket.release()

        task.add_done_callback(ended)

    async def _ask(self, call: Call, target: Target) -> None:
        services = self._services
        guard = AnswerGuard(services.detectors, target.deployment.guard_profile)
        request = request_of(call, target, services)
        started = time.perf_counter()
        try:
            terms = Terms(traceparent=call.trace.header if call.trace is not None else None)
            answer = await services.provider_of(target).complete(request, terms)
            guard.check_answer(answer.payload)
        except UpstreamError as error:
            call.lost_seconds = time.perf_counter() - started
            told = for_caller(error, call.use_case or "", target.deployment.provider)
            services.record(call, target, failure(call, error, told))
        except Exception:
            _log.exception("the shadow copy of %s failed", call.shadow_of, extra=call.traced())
        else:
            outcome = settled(call, guard, answer.payload, answer.waited_seconds)
            call.settle(services.time(), services.record(call, target, outcome))

    async def finish(self, seconds: float) -> None:
        """Give copies in flight a moment, then drop them."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)
        for task in tuple(self._tasks):
            task.cancel()


def _copy_of(call: Call, ticket: Ticket) -> Call:
    copy = call.copy()
    copy.begin()
    copy.kind = InteractionKind.SHADOW
    copy.lost_seconds = 0.0
    copy.shadow_of, copy.fallback_of = call.id, None
    copy.attempts = 1
    copy.ticket = ticket
    copy.trace = call.trace and call.trace.child()
    return copy
