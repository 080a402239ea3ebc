"""One call and the deployments that are asked for it, until one answers or nobody is left.

Whoever was drawn is whom the outcome counts for: a deployment that failed keeps its failure in a row of
its own, and whoever answers in its place stands in no arm's evidence. What is asked again, and when, is
``gateway.retrying``'s to say. Knows neither plain nor streamed answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from gateway.answer_guard import AnswerGuard
from gateway.breaker import Breaker, BreakerState
from gateway.errors import ApiError, CircuitOpenError, HedgedError, UpstreamError, for_caller
from gateway.http_message import Header
from gateway.interaction import Bill, Call, Outcome, Target, fallback_target
from gateway.keys import INSPECT
from gateway.limits import clamp_tokens
from gateway.provider import Provider, Terms
from gateway.retrying import Again, AskNext, Failure, GiveUp, line_of, next_step
from gateway.services import Services
from gateway.surface import Asked, Surface
from gateway.upstream_request import request_for
from storage.ids import new_id
from storage.routing import Fallback
from storage.vocabulary import Arm, InteractionStatus

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ask = Callable[[Provider, dict[str, Any], Terms], Awaitable[T]]


class Exchange:
    """The state of one call while it is being answered."""

    __slots__ = (
        "_asked_ids",
        "_attempts",
        "_deadline",
        "_drawn",
        "asked",
        "call",
        "guard",
        "services",
        "status",
        "surface",
        "target",
    )

    def __init__(
        self,
        services: Services,
        call: Call,
        target: Target,
        surface: Surface,
        asked: Asked,
    ) -> None:
        self.services = services
        self.call = call
        self.target = target  #: whoever is being asked now
        self.surface = surface
        self.asked = asked
        self.guard = AnswerGuard(services.detectors, target.deployment.guard_profile)
        self.status: InteractionStatus | None = None  #: once it has ended
        self._drawn = target.arm
        self._asked_ids = {target.deployment.id}
        self._attempts = 0  # at the present target
        total = call.serving.waiting.total_seconds
        self._deadline = None if total is None else services.time() + total

    # -- asking

    async def ask(self, ask: Ask[T]) -> T:
        """The first good answer, or the last failure."""
        while True:
            try:
                return await self._ask_target(ask)
            except UpstreamError as error:
                match self._next_step(error):
                    case Again(seconds):
                        await self._pause(seconds)
                    case AskNext(fallback):
                        self._move_on(error, fallback)
                    case GiveUp():
                        raise

    def _next_step(self, error: UpstreamError) -> Again | AskNext | GiveUp:
        failed = Failure(
            error=error,
            attempts=self._attempts,
            arm=self._drawn,
            elapsed=self.call.elapsed,
            waiting=self.call.serving.waiting,
            may_ask_again=not isinstance(error, CircuitOpenError),
        )
        return next_step(failed, self._line(), random.random())

    def _line(self) -> tuple[Fallback, ...]:
        """Who is left to ask."""
        return line_of(self._drawn, self.call.route, self.call.serving.fallbacks, self._asked_ids)

    async def _pause(self, seconds: float) -> None:
        self.call.lost_seconds += seconds
        await asyncio.sleep(seconds)

    async def _ask_target(self, ask: Ask[T]) -> T:
        hedge = self.call.serving.waiting.hedge_after_seconds
        if hedge is not None and not self._attempts and (line := self._line()):
            return await self._race(ask, hedge, line[0])
        return await self._attempt(ask, self.target)

    async def _attempt(self, ask: Ask[T], target: Target) -> T:
        services = self.services
        self._attempts += 1
        breaker = self._breaker_of(target)
        now = services.time()
        if not breaker.allows(now):
            resting = breaker.state(now) is BreakerState.RESTING
            raise CircuitOpenError(breaker.seconds_closed_off(now), resting=resting)
        provider = services.provider_of(target)
        request = request_of(self.call, target, services)
        started = time.perf_counter()
        self.call.attempts += 1
        try:
            answer = await ask(provider, request, self._terms())
        except UpstreamError as error:
            breaker.failed(services.time(), error)
            self.call.lost_seconds += time.perf_counter() - started
            raise
        except BaseException:
            breaker.gave_up(services.time())
            raise
        breaker.succeeded(services.time())
        return answer

    def note_broken(self, error: UpstreamError) -> None:
        """The deployment has begun its answer well and did not end it."""
        self._breaker_of(self.target).failed(self.services.time(), error)

    def _breaker_of(self, target: Target) -> Breaker:
        """One for each thing that is asked of a deployment: no embeddings does not mean no chat."""
        name = target.deployment.id
        return self.services.breakers.of(name if self.surface.name != "embeddings" else f"{name}/embeddings")

    def _terms(self) -> Terms:
        waiting, trace = self.call.serving.waiting, self.call.trace
        return Terms(
            waiting.first_token_seconds,
            waiting.idle_seconds,
            self._deadline,
            trace.header if trace is not None else None,
        )

    async def _race(self, ask: Ask[T], seconds: float, rival: Fallback) -> T:
        """Ask another one too if nothing has come by then; whoever answers first is taken."""
        lost = self.call.lost_seconds
        first = asyncio.ensure_future(self._attempt(ask, self.target))
        try:
            done, _ = await asyncio.wait((first,), timeout=seconds)
            if done:
                return first.result()
            answer = await self._race_both(ask, first, rival)
            if not _answered(first):
                self.call.lost_seconds = lost + seconds  # until the one who answered was asked
            return answer
        finally:
            await _drop(first)

    async def _race_both(self, ask: Ask[T], first: asyncio.Task[T], rival: Fallback) -> T:
        second = asyncio.ensure_future(self._attempt(ask, self._target_of(rival)))
        try:
            done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            if not any(map(_answered, done)):
                await asyncio.wait((first, second))  # one failed: the other may still answer
            if _answered(first):
                self._log_rival(rival, _failure_of(second))
                return first.result()
            self._move_on(_failure_of(first), rival)
            self._attempts = 1
            return second.result()
        finally:
            await _drop(second)

    def _log_rival(self, rival: Fallback, error: UpstreamError) -> None:
        """Log that the one who was asked besides was asked in vain."""
        asked = self.call.copy()
        asked.id, asked.ticket, asked.fallback_of = new_id("int"), None, self.call.id
        asked.trace = self.call.trace and self.call.trace.child()
        told = for_caller(error, asked.use_case or "", rival.deployment.provider)
        self.services.record(asked, self._target_of(rival), failure(asked, error, told))

    def _move_on(self, error: UpstreamError, to: Fallback) -> None:
        """Log the failure of the present target, and make another one the target."""
        failed = self.call.copy()
        failed.id, failed.ticket = new_id("int"), None
        failed.trace = self.call.trace and self.call.trace.child()
        self.warn(error)
        self.services.record(failed, self.target, failure(self.call, error, self.told(error)))
        self.services.metrics.count_fallback(self.call.use_case or "", error.code)
        self.call.fallback_of = self.call.fallback_of or failed.id
        self.target = self._target_of(to)
        self._asked_ids.add(to.deployment.id)
        self._attempts = 0
        self.guard = AnswerGuard(self.services.detectors, self.target.deployment.guard_profile)

    def _target_of(self, fallback: Fallback) -> Target:
        stable = self.call.route.find(Arm.STABLE) if self.call.route else None
        if stable is not None and stable.release_id == fallback.release_id:
            drawn = self.target
            return Target(stable.release_id, stable.deployment, Arm.STABLE, drawn.weight, drawn.unit)
        return fallback_target(fallback)

    # -- telling

    def warn(self, error: UpstreamError) -> None:
        """Say in the log that the deployment being asked failed; its own words may quote the prompt."""
        deployment = self.target.deployment.id
        extra = {**self.call.traced(), "deployment": deployment, "error": error.code}
        _log.warning("%s failed for %s: %s", deployment, self.call.id, error.code, extra=extra)

    def told(self, error: UpstreamError) -> ApiError:
        """What the caller is told of a failure of the deployment being asked."""
        return for_caller(error, self.call.use_case or "", self.target.deployment.provider)

    def record(self, outcome: Outcome) -> Bill | None:
        """Write down how the call ended on the deployment that was asked last. Once."""
        self.status = outcome.status
        bill = self.services.record(self.call, self.target, outcome)
        self.call.settle(self.services.time(), bill)
        return bill

    def close(self) -> None:
        """Give back what the call held while it ran."""
        if self.call.ticket is not None:
            self.call.ticket.release()

    def headers(self, overhead_seconds: float | None = None, cost: Bill | None = None) -> list[Header]:
        """What every caller may know; who answered and at what cost, for keys that may see it."""
        call, target = self.call, self.target
        headers = [(name, call.id.encode()) for name in self.surface.id_headers]
        if call.ticket is not None:
            headers += self.services.limiter.headers(call.ticket)
        if INSPECT not in call.key.scopes:
            return headers
        headers += (
            (b"x-meta-agent-release", target.release_id.encode()),
            (b"x-meta-agent-deployment", target.deployment.id.encode()),
            (b"x-meta-agent-variant", target.variant.encode()),
        )
        if overhead_seconds is not None:
            headers.append((b"x-meta-agent-overhead-ms", b"%.3f" % (max(0.0, overhead_seconds) * 1000)))
        if cost is not None:
            headers.append((b"x-meta-agent-cost-usd", format(cost.cost_usd, "f").encode()))
        return headers

    def closing_comment(self, cost: Bill | None) -> bytes:
        """What the headers of a stream could not say yet, as a comment that clients skip."""
        if cost is None or INSPECT not in self.call.key.scopes:
            return b""
        return f": x-meta-agent-cost-usd={cost.cost_usd:f}\n\n".encode()


def _answered(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _failure_of(task: asyncio.Task[Any]) -> UpstreamError:
    """Why a deployment that raced has lost. Raises what is no failure of a deployment."""
    error = task.exception() if task.done() and not task.cancelled() else None
    if error is None:
        return HedgedError("another deployment answered sooner")
    if isinstance(error, UpstreamError):
        return error
    raise error


async def _drop(task: asyncio.Task[Any]) -> None:
    """Cancel what nobody waits for any more; its connection is closed by that."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, UpstreamError):
            await task
    elif not task.cancelled():
        task.exception()  # looked at, so that nothing complains of it


def request_of(call: Call, target: Target, services: Services) -> dict[str, Any]:
    """What a deployment is asked, with no more tokens than key and use case allow."""
    body = call.body or {}
    config = services.config.providers.get(target.deployment.provider)
    kind = config.kind if config is not None else None
    stream = call.stream and call.shadow_of is None
    request = request_for(body, target.deployment, stream=stream, kind=kind, surface=call.surface)
    if "messages" not in body:  # embeddings have no length
        return request
    unnamed = "max_completion_tokens" if kind == "openai" else "max_tokens"
    return clamp_tokens(request, call.key.limits, call.serving.limits, unnamed=unnamed)


def failure(call: Call, error: UpstreamError, told: ApiError, guard: AnswerGuard | None = None) -> Outcome:
    """The outcome of a deployment that failed, perhaps in the middle of its answer."""
    latency = call.elapsed
    return Outcome(
        status=InteractionStatus.ERROR,
        http_status=told.status,
        text=guard.text if guard else None,
        characters=guard.characters if guard else 0,
        findings=guard.findings if guard else [],
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


def cancelled(call: Call) -> Outcome:
    """The outcome of a call whose caller did not wait for the answer."""
    return Outcome(
        status=InteractionStatus.CANCELLED,
        http_status=499,
        error_type="client_gone",
        error_message="the client went away before the answer",
        latency_seconds=call.elapsed,
    )


def settled(call: Call, guard: AnswerGuard, payload: dict[str, Any], waited_seconds: float) -> Outcome:
    """The outcome of a whole answer that was led through the guard."""
    latency = call.elapsed
    usage = payload.get("usage")
    return Outcome(
        status=InteractionStatus.BLOCKED if guard.blocked else InteractionStatus.OK,
        http_status=200,
        text=guard.text,
        characters=guard.characters,
        finish_reason=guard.finish_reason,
        usage=usage if isinstance(usage, dict) else None,
        findings=guard.findings,
        latency_seconds=latency,
        overhead_seconds=latency - waited_seconds - call.lost_seconds,
    )
