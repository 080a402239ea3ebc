"""Stops asking a deployment that fails, and finds out when it is well again.

Closed, it lets all through and counts. Open, it lets nothing through for a while that doubles each time.
Half open, it lets one call through and goes by how that ends. Being told to slow down is no failure:
it is heeded for as long as the provider says. Knows no clock: times are told, in monotonic seconds.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

from gateway.errors import BusyError, NotConfiguredError, UpstreamError
from gateway.retrying import seconds_of

_TOO_MANY = 429
#: With these a deployment, or the way to it, is broken for every call: credentials, its name, its time.
_BROKEN_STATUSES = frozenset({401, 403, 404, 408})


class BreakerState(StrEnum):
    """Whether a deployment is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RESTING = "resting"  #: it said that it has too much to do


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long."""

    consecutive: int = 5  #: failures in a row
    share: float = 0.5  #: or this share of the outcomes of the window
    minimum: int = 20  #: once the window holds as many
    window: int = 100  #: outcomes at most
    window_seconds: float = 60.0  #: none older
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    probe_seconds: float = 30.0  #: a probe that has not ended by then is given up for another
    too_many: int = 3  #: refusals in a row that name no time, before it may rest


class Breaker:
    """The breaker of one deployment. ``draw``: numbers in [0, 1), for jitter."""

    __slots__ = (
        "_closed_at",
        "_draw",
        "_failures",
        "_openings",
        "_outcomes",
        "_probing_until",
        "_rules",
        "_run",
        "_slow_run",
        "_state",
        "_until",
    )

    def __init__(self, rules: BreakerRules | None = None, draw: Callable[[], float] = random.random) -> None:
        self._rules = rules or BreakerRules()
        self._draw = draw
        self._state = BreakerState.CLOSED
        self._until = 0.0  #: open or resting
        self._probing_until = 0.0  #: 0: no probe is under way
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._failures = 0  #: among the outcomes
        self._run = 0  #: failures in a row
        self._slow_run = 0  #: 429s in a row
        self._openings = 0  #: since it was last closed for long
        self._closed_at = 0.0

    def allows(self, now: float) -> bool:
        """Whether the deployment may be asked. A yes while half open is for one call: report its end."""
        if self._state is BreakerState.CLOSED:
            return True
        if now < self._until:
            return False
        if self._state is BreakerState.RESTING:
            self._state = BreakerState.CLOSED
            return True
        if now < self._probing_until:
            return False
        self._state = BreakerState.HALF_OPEN
        self._probing_until = now + self._rules.probe_seconds
        return True

    def succeeded(self, now: float) -> None:
        """It answered."""
        self._slow_run = 0
        if self._state is BreakerState.HALF_OPEN:
            self._close(now)
        elif self._state is not BreakerState.OPEN:  # else: asked before it opened
            self._run = 0
            self._note(now, False)

    def failed(self, now: float, error: UpstreamError) -> None:
        """It did not answer, or not well. What says nothing of the deployment is not held against it."""
        status = error.status
        if status == _TOO_MANY:
            self._slow_down(now, seconds_of(getattr(error, "retry_after", None)))
        elif isinstance(error, BusyError | NotConfiguredError):
            self.gave_up(now)  # nobody was asked
        elif status is not None and status < 500 and status not in _BROKEN_STATUSES:
            self.succeeded(now)  # it lives, and found fault with the request
        else:
            self._fail(now)

    def gave_up(self, now: float) -> None:
        """A call ended without a word on the deployment: its caller went away."""
        self._probing_until = 0.0

    def state(self, now: float) -> BreakerState:
        """For metrics; changes nothing."""
        if self._state is BreakerState.OPEN and now >= self._until:
            return BreakerState.HALF_OPEN
        if self._state is BreakerState.RESTING and now >= self._until:
            return BreakerState.CLOSED
        return self._state

    def seconds_closed_off(self, now: float) -> float:
        """How long it will let nothing through; for a caller's retry-after."""
        if self._state is BreakerState.CLOSED:
            return 0.0
        return max(0.0, max(self._until, self._probing_until) - now)

    def _fail(self, now: float) -> None:
        if self._state is BreakerState.HALF_OPEN:
            self._open(now)
        elif self._state is not BreakerState.OPEN:
            self._run += 1
            self._note(now, True)
            if self._run >= self._rules.consecutive or self._is_failing():
                self._open(now)

    def _note(self, now: float, failure: bool) -> None:
        outcomes, rules = self._outcomes, self._rules
        outcomes.append((now, failure))
        self._failures += failure
        oldest = now - rules.window_seconds
        while len(outcomes) > rules.window or outcomes[0][0] < oldest:
            self._failures -= outcomes.popleft()[1]

    def _is_failing(self) -> bool:
        count = len(self._outcomes)
        return count >= self._rules.minimum and self._failures >= self._rules.share * count

    def _open(self, now: float) -> None:
        rules = self._rules
        if self._state is not BreakerState.HALF_OPEN and now - self._closed_at > rules.longest_seconds:
            self._openings = 0
        self._state = BreakerState.OPEN
        self._until = now + self._back_off(self._openings)
        self._openings += 1
        self._probing_until = 0.0

    def _close(self, now: float) -> None:
        self._state = BreakerState.CLOSED
        self._closed_at = now
        self._probing_until = 0.0
        self._outcomes.clear()
        self._failures = self._run = 0

    def _slow_down(self, now: float, told: float | None) -> None:
        """Heed a 429: as long as it says, but no longer than it would be left alone for failing."""
        self._slow_run += 1
        if self._state is BreakerState.HALF_OPEN:
            self._close(now)  # it lives
        if self._state is BreakerState.OPEN or (told is None and self._slow_run < self._rules.too_many):
            return
        pause = self._back_off(self._slow_run - self._rules.too_many) if told is None else told
        until = now + min(pause, self._rules.longest_seconds)
        self._until = max(self._until, until)
        self._state = BreakerState.RESTING

    def _back_off(self, earlier: int) -> float:
        """Doubled for each earlier time; between half of it and all, so that not all come back at once."""
        rules = self._rules
        longest = min(rules.longest_seconds, rules.first_seconds * 2.0 ** min(earlier, 32))
        return longest * (0.5 + 0.5 * self._draw())


class Breakers:
    """The breakers of all deployments, by id; no more than ``maximum`` of them."""

    def __init__(
        self,
        rules: BreakerRules | None = None,
        maximum: int = 10_000,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._rules = rules or BreakerRules()
        self._maximum = maximum
        self._draw = draw
        self._breakers: dict[str, Breaker] = {}

    def __len__(self) -> int:
        return len(self._breakers)

    def of(self, deployment_id: str) -> Breaker:
        """The breaker of a deployment; the oldest makes place for one too many."""
        breaker = self._breakers.get(deployment_id)
        if breaker is None:
            if len(self._breakers) >= self._maximum:
                del self._breakers[next(iter(self._breakers))]
            breaker = self._breakers[deployment_id] = Breaker(self._rules, self._draw)
        return breaker

    def keep(self, deployment_ids: Collection[str]) -> None:
        """Forget the deployments that no route leads to any more."""
        self._breakers = {
            name: each for name, each in self._breakers.items() if name.partition("/")[0] in deployment_ids
        }

    def states(self, now: float) -> dict[str, BreakerState]:
        """By deployment, for metrics."""
        return {name: breaker.state(now) for name, breaker in self._breakers.items()}
