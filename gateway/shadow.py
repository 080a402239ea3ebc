"""Sends copies of live requests to a shadow release, after the caller has its answer.

Never on the caller's time, never more than a fixed number at once, and nobody reads the answers but
the log: they are guarded, costed and paired with the interaction that they copy.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time

from gateway.answer_guard import AnswerGuard
from gateway.errors import UpstreamError, for_caller
from gateway.exchange import failure, settle
from gateway.interaction import Call, Target
from gateway.services import Services
from gateway.upstream_request import request_for
from storage.clock import now
from storage.ids import new_id
from storage.vocabulary import Arm, InteractionKind

_log = logging.getLogger(__name__)


class Shadows:
    """The copies in flight."""

    def __init__(self, services: Services, concurrency: int) -> None:
        self._services = services
        self._concurrency = concurrency
        self._tasks: set[asyncio.Task[None]] = set()

    def mirror(self, call: Call, answered_by: Target) -> None:
        """Copy one finished call to its route's shadow, or count that there was no room."""
        shadow = call.route.find(Arm.SHADOW) if call.route else None
        if shadow is None:
            return
        if len(self._tasks) >= self._concurrency:
            self._services.metrics.shadow_dropped += 1
            return
        target = Target(shadow.release_id, shadow.deployment, Arm.SHADOW, shadow.weight, answered_by.unit)
        copy = dataclasses.replace(
            call,
            id=new_id("int"),
            at=now(),
            started=time.perf_counter(),
            lost_seconds=0.0,
            kind=InteractionKind.SHADOW,
            shadow_of=call.id,
            fallback_of=None,
        )
        task = asyncio.ensure_future(self._ask(copy, target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, call: Call, target: Target) -> None:
        assert call.chat is not None
        guard = AnswerGuard(self._services.detectors, target.deployment.guard_profile)
        request = request_for(call.chat.body, target.deployment, stream=False)
        started = time.perf_counter()
        try:
            answer = await self._services.provider_of(target).complete(request)
            guard.check_answer(answer.payload)
        except UpstreamError as error:
            call.lost_seconds = time.perf_counter() - started
            told = for_caller(error, call.use_case or "", target.deployment.provider)
            self._services.record(call, target, failure(call, error, told))
        except Exception:
            _log.exception("the shadow copy of %s failed", call.shadow_of)
        else:
            self._services.record(call, target, settle(call, guard, answer.payload, answer.waited_seconds))

    async def finish(self, seconds: float) -> None:
        """Give copies in flight a moment, then drop them."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)
        for task in tuple(self._tasks):
            task.cancel()
