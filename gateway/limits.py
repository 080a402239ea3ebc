"""How much a key or a use case may take: requests, tokens, calls at once, dollars.

Rates are token buckets that hold one minute's worth; spend is what the database's totals say and what
was counted here since. Knows no clock, no database and no other gateway: times, days and totals are told.

Tokens are taken by an estimate when a call is admitted and put right when it is settled, so a bucket may
go below nothing. Of calls that are still under way at the begin of a window the difference is given back
within it: that much more than the limit may pass in such a window, never in the long run.
Spend is known once a call has ended: what is under way when a budget runs out may exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from gateway.errors import ApiError
from gateway.sidecar.messages import SubjectTotal, Totals
from storage.routing import Limits
from storage.vocabulary import OverBudget

INFINITE = math.inf
_MINUTE = 60.0
#: A subject that nobody called for this long is forgotten, unless it has spent something this month.
_IDLE_SECONDS = 3600.0
_SWEEP_SECONDS = 60.0
#: What was counted of a subject longer ago than this is taken for shipped, if totals arrive at all.
_SHIPPED_SECONDS = 60.0
_CONCURRENCY_RETRY_SECONDS = 1.0
_COMPLETION = "max_completion_tokens"
_NEVER = date.min

Claim = tuple[str, Limits]
Header = tuple[bytes, bytes]


class BudgetAlert(NamedTuple):
    """A budget is spent, and its calls go on."""

    subject: str
    period: str  #: day or month
    budget_usd: float
    spent_usd: float


class Ticket:
    """One admitted call. Ended exactly once; whatever comes after that changes nothing."""

    __slots__ = ("_day", "_estimate", "_open", "alerts", "downgrade", "subjects")

    def __init__(self, subjects: Sequence[_Subject], estimate: float, day: date) -> None:
        self.subjects = subjects
        self.alerts: tuple[BudgetAlert, ...] = ()
        self.downgrade = False
        self._estimate = estimate
        self._day = day
        self._open = bool(subjects)

    def settle(self, now: float, tokens: float, cost_usd: float | Decimal) -> None:
        """The call has ended and took this much."""
        if not self._open:
            return
        self._open = False
        cost = float(cost_usd)
        back = self._estimate - tokens
        for subject in self.subjects:
            subject.in_flight -= 1
            subject.touched = now
            level = subject.tokens + back
            subject.tokens = level if level < subject.tokens_limit else subject.tokens_limit
            if cost:
                subject.spend(cost, self._day)

    def release(self) -> None:
        """The call was never made: all that was taken for it goes back."""
        if not self._open:
            return
        self._open = False
        for subject in self.subjects:
            subject.in_flight -= 1
            subject.requests = min(subject.requests + 1, subject.requests_limit)
            subject.tokens = min(subject.tokens + self._estimate, subject.tokens_limit)


class Limiter:
    """The limits of one gateway process. ``maximum`` bounds how many subjects it remembers."""

    def __init__(self, maximum: int = 50_000) -> None:
        self._maximum = maximum
        self._subjects: dict[str, _Subject] = {}
        self._today = _NEVER
        self._swept = -INFINITE

    def __len__(self) -> int:
        return len(self._subjects)

    def admit(self, now: float, today: date, claims: Sequence[Claim], tokens_estimate: float) -> Ticket:
        """Take a call's share of every claim, or raise ``ApiError`` and take nothing.

        ``now``: seconds of a monotonic clock. ``today``: the UTC day that the call is booked on.
        """
        taken: list[_Subject] = []
        free = True
        for name, limits in claims:
            if (
                limits.requests_per_minute is None
                and limits.tokens_per_minute is None
                and limits.concurrent is None
                and limits.usd_per_day is None
                and limits.usd_per_month is None
            ):
                continue
            subject = self._subjects.get(name)
            if subject is None:
                subject = self._add(name, now)
            subject.bring_to(now, today)
            if subject.limits is not limits:
                subject.adopt(limits)
            if (
                subject.requests < 1
                or subject.tokens < tokens_estimate
                or subject.in_flight >= subject.concurrent
                or (subject.spent and subject.blocks)
            ):
                raise self._refusal(now, today, claims, tokens_estimate)
            free = free and not subject.spent
            taken.append(subject)
        if not taken:
            return _UNLIMITED
        for subject in taken:
            subject.requests -= 1
            subject.tokens -= tokens_estimate
            subject.in_flight += 1
            subject.touched = now
        ticket = Ticket(taken, tokens_estimate, today)
        if not free:
            ticket.alerts = tuple(alert for subject in taken for alert in subject.alerts())
            ticket.downgrade = any(subject.downgrades for subject in taken)
        return ticket

    def absorb(self, now: float, totals: Totals) -> None:
        """Take the sidecar's totals for what they say of other gateways, and of what was spent."""
        self._today = max(self._today, totals.day)
        for total in totals.totals:
            subject = self._subjects.get(total.subject) or self._add(total.subject, now)
            subject.bring_to(now, totals.day)
            subject.absorb(now, totals.day, total)
        if now - self._swept > _SWEEP_SECONDS:
            self._sweep(now)

    def headers(self, ticket: Ticket) -> list[tuple[bytes, bytes]]:
        """OpenAI's rate limit headers, as of the ticket's admission or later; empty without limits."""
        return _headers(ticket.subjects)

    def headers_for(self, claims: Sequence[Claim]) -> list[tuple[bytes, bytes]]:
        """The same for a call that was refused."""
        return _headers([self._subjects[name] for name, _ in claims if name in self._subjects])

    def in_flight(self, name: str) -> int:
        """How many calls of a subject are under way; for metrics."""
        subject = self._subjects.get(name)
        return subject.in_flight if subject else 0

    def spent(self, name: str) -> tuple[float, float]:
        """(this day's, this month's) dollars of a subject, as far as they are known here."""
        subject = self._subjects.get(name)
        return (subject.spent_day, subject.spent_month) if subject else (0.0, 0.0)

    def _add(self, name: str, now: float) -> _Subject:
        if len(self._subjects) >= self._maximum:
            self._sweep(now)
        subject = self._subjects[name] = _Subject(name, now)
        return subject

    def _sweep(self, now: float) -> None:
        """Forget who is idle; the longest idle first if there are still too many."""
        self._swept = now
        for subject in list(self._subjects.values()):
            if subject.is_forgettable(now, self._today):
                del self._subjects[subject.name]
        surplus = len(self._subjects) - self._maximum
        if surplus < 0:
            return
        idle = sorted(
            (each for each in self._subjects.values() if not each.in_flight), key=lambda each: each.touched
        )
        for subject in idle[: surplus + 1 + self._maximum // 10]:  # some more: not to sort again at once
            del self._subjects[subject.name]

    def _refusal(self, now: float, today: date, claims: Sequence[Claim], estimate: float) -> ApiError:
        """Of all that is in the way, what stays there longest: who waits for less comes back in vain."""
        found: list[tuple[float, ApiError]] = []
        for name, limits in claims:
            subject = self._subjects.get(name)
            if subject is not None:
                subject.bring_to(now, today)
                if subject.limits is not limits:
                    subject.adopt(limits)
                found.extend(subject.refusals(estimate))
        return max(found, key=lambda each: each[0])[1]


class _Subject:
    """The state of one key or use case. No limit is an infinite one: nothing has to be asked twice."""

    __slots__ = (
        "base",
        "blocks",
        "checked",
        "checked_cost",
        "concurrent",
        "counted",
        "counted_day",
        "counted_month",
        "day",
        "day_budget",
        "day_total",
        "downgrading",
        "filled",
        "in_flight",
        "last",
        "last_day",
        "limits",
        "month_budget",
        "month_total",
        "name",
        "own_cost",
        "requests",
        "requests_limit",
        "requests_rate",
        "spent",
        "spent_day",
        "spent_month",
        "tokens",
        "tokens_limit",
        "tokens_rate",
        "touched",
    )

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.limits: Limits | None = None
        self.filled = self.touched = now
        self.requests = self.requests_limit = self.requests_rate = INFINITE
        self.tokens = self.tokens_limit = self.tokens_rate = INFINITE
        self.concurrent = self.day_budget = self.month_budget = INFINITE
        self.blocks = self.downgrading = False
        self.in_flight = 0
        self.day = _NEVER
        self.spent = False  #: a budget is
        self.spent_day = self.spent_month = 0.0
        self.counted = 0.0  #: dollars settled here, ever
        self.counted_day = self.counted_month = 0.0  #: the part of it that belongs to the day, the month
        self.base = 0.0  #: how much of it was shipped, beyond what the sidecar calls its own
        self.checked, self.checked_cost = now, 0.0  #: how much was counted at an earlier moment
        self.last: SubjectTotal | None = None
        self.last_day = _NEVER
        self.day_total = self.month_total = self.own_cost = 0.0  #: as the last totals had it

    def bring_to(self, now: float, today: date) -> None:
        """Refill the buckets, and begin a new day if it is one."""
        passed = now - self.filled
        if passed > 0:
            self.filled = now
            level = self.requests + passed * self.requests_rate
            self.requests = level if level < self.requests_limit else self.requests_limit
            level = self.tokens + passed * self.tokens_rate
            self.tokens = level if level < self.tokens_limit else self.tokens_limit
        if today > self.day:
            if not _same_month(today, self.day):
                self.counted_month = 0.0
            self.counted_day = 0.0
            self.day = today
            self._sum_up()

    def adopt(self, limits: Limits) -> None:
        """Go on under other limits: a bucket stays as full as it was, a debt stays what it was."""
        self.limits = limits
        self.requests = _rescaled(self.requests, self.requests_limit, limits.requests_per_minute)
        self.requests_limit = _limit(limits.requests_per_minute)
        self.requests_rate = self.requests_limit / _MINUTE
        self.tokens = _rescaled(self.tokens, self.tokens_limit, limits.tokens_per_minute)
        self.tokens_limit = _limit(limits.tokens_per_minute)
        self.tokens_rate = self.tokens_limit / _MINUTE
        self.concurrent = _limit(limits.concurrent)
        self.day_budget = _limit(limits.usd_per_day)
        self.month_budget = _limit(limits.usd_per_month)
        self.blocks = limits.over_budget is OverBudget.BLOCK
        self.downgrading = limits.over_budget is OverBudget.DOWNGRADE
        self._judge()

    def spend(self, cost: float, day: date) -> None:
        """Book a settled call on the day of its admission, as the database will."""
        self.counted += cost
        if day == self.day:
            self.counted_day += cost
            self.counted_month += cost
            self.spent_day += cost
            self.spent_month += cost
            self.spent = self.spent_day >= self.day_budget or self.spent_month >= self.month_budget
            return
        if _same_month(day, self.day):
            self.counted_month += cost
        self._sum_up()

    def absorb(self, now: float, day: date, total: SubjectTotal) -> None:
        """Totals as of ``day``. Those of an earlier day than were seen already say nothing new."""
        last, own_cost = self.last, float(total.own_cost_usd)
        if day < self.last_day:
            return
        if last is not None and total.own_requests < last.own_requests:
            # Another sidecar. What the one before it shipped at its end is in the total, and nobody else's.
            self.base = self.counted - own_cost
        elif last is not None:
            self._drain(total, last, day == self.last_day)
        if self.counted - self.base < own_cost:
            self.base = self.counted - own_cost  # more was shipped than was thought to be open
        if now - self.checked > _SHIPPED_SECONDS:  # what was open then and still is, nobody will ship
            self.base = max(self.base, self.checked_cost - own_cost)
            self.checked, self.checked_cost = now, self.counted
        self.last, self.last_day = total, day
        self.day_total, self.month_total = float(total.day_cost_usd), float(total.month_cost_usd)
        self.own_cost = own_cost
        self._sum_up()

    def _drain(self, total: SubjectTotal, last: SubjectTotal, same_day: bool) -> None:
        """Take from the buckets what other gateways admitted; at most to one minute below nothing."""
        requests = total.day_requests - (total.own_requests - last.own_requests)
        tokens = total.day_tokens - (total.own_tokens - last.own_tokens)
        if same_day:
            requests, tokens = requests - last.day_requests, tokens - last.day_tokens
        if requests > 0:
            floor = min(self.requests, -self.requests_limit)
            self.requests = max(self.requests - requests, floor)
        if tokens > 0:
            floor = min(self.tokens, -self.tokens_limit)
            self.tokens = max(self.tokens - tokens, floor)

    def _sum_up(self) -> None:
        """Spend is the totals and what was counted here since: of that, the latest is not shipped yet."""
        open_cost = self.counted - self.base - self.own_cost
        day = self.day_total if self.last_day == self.day else 0.0
        month = self.month_total if _same_month(self.last_day, self.day) else 0.0
        self.spent_day = day + max(0.0, min(open_cost, self.counted_day))
        self.spent_month = month + max(0.0, min(open_cost, self.counted_month))
        self._judge()

    def _judge(self) -> None:
        self.spent = self.spent_day >= self.day_budget or self.spent_month >= self.month_budget

    @property
    def downgrades(self) -> bool:
        """Whether a cheaper release is to answer."""
        return self.spent and self.downgrading

    def alerts(self) -> Iterator[BudgetAlert]:
        """Which budgets are spent."""
        if self.spent_day >= self.day_budget:
            yield BudgetAlert(self.name, "day", self.day_budget, self.spent_day)
        if self.spent_month >= self.month_budget:
            yield BudgetAlert(self.name, "month", self.month_budget, self.spent_month)

    def refusals(self, estimate: float) -> Iterator[tuple[float, ApiError]]:
        """What is in a call's way, each with the seconds that it will stay there."""
        who = _words(self.name)
        if self.blocks:
            for alert in self.alerts():
                yield INFINITE, _over_budget(who, alert, self.day)
        if estimate > self.tokens_limit:
            yield INFINITE, _too_large(who, self.tokens_limit, estimate)
        elif self.tokens < estimate:
            wait = (estimate - self.tokens) / self.tokens_rate if self.tokens_rate else INFINITE
            used = self.tokens_limit - self.tokens
            yield wait, _too_fast(who, "tokens per min (TPM)", self.tokens_limit, used, estimate, wait)
        if self.requests < 1:
            wait = (1 - self.requests) / self.requests_rate if self.requests_rate else INFINITE
            used = self.requests_limit - self.requests
            yield wait, _too_fast(who, "requests per min (RPM)", self.requests_limit, used, 1, wait)
        if self.in_flight >= self.concurrent:
            wait = _CONCURRENCY_RETRY_SECONDS
            yield wait, _too_fast(who, "requests at once", self.concurrent, self.in_flight, 1, wait)

    def is_forgettable(self, now: float, today: date) -> bool:
        """Whether nothing would be lost that still counts."""
        if self.in_flight or now - self.touched < _IDLE_SECONDS:
            return False
        self.bring_to(now, self.day)
        if self.requests < 0 or self.tokens < 0:
            return False
        return not self.spent_month or not _same_month(self.day, today)


_UNLIMITED = Ticket((), 0, _NEVER)


def clamp_tokens(body: dict[str, Any], *limits: Limits, unnamed: str = _COMPLETION) -> dict[str, Any]:
    """A chat request that asks for no longer an answer than the smallest ``max_tokens`` of the limits.

    Meant for what is sent to a deployment, its own parameters included. If it names no length, then
    ``unnamed`` is the field that is set: servers that know only ``max_tokens`` ignore the newer one.
    Returns ``body`` itself if nothing has to change, and never changes it.
    """
    largest: int | None = None
    for each in limits:
        if each.max_tokens is not None and (largest is None or each.max_tokens < largest):
            largest = each.max_tokens
    if largest is None:
        return body
    named = [name for name in (_COMPLETION, "max_tokens") if body.get(name) is not None]
    if not named:
        return {**body, unnamed: largest}
    changes = {name: largest for name in named if not _is_within(body[name], largest)}
    return {**body, **changes} if changes else body


def _is_within(value: Any, largest: int) -> bool:
    return isinstance(value, int | float) and value <= largest


def _limit(value: float | Decimal | None) -> float:
    return INFINITE if value is None else float(value)


def _rescaled(level: float, old: float, new: int | None) -> float:
    if new is None:
        return INFINITE
    if old == INFINITE or not old:
        return float(new) if old else 0.0
    return level * new / old if level > 0 else level


def _same_month(one: date, other: date) -> bool:
    return one is other or (one.month == other.month and one.year == other.year)


def _words(name: str) -> str:
    kind, _, rest = name.partition(":")
    return f"{kind.replace('_', ' ')} '{rest}'" if rest else f"'{kind}'"


def _too_fast(who: str, what: str, limit: float, used: float, requested: float, wait: float) -> ApiError:
    again = f"Please try again in {_duration(wait)}." if wait < INFINITE else "Ask the operator to raise it."
    text = (
        f"Rate limit reached for {who} on {what}: "
        f"Limit {limit:.0f}, Used {used:.0f}, Requested {requested:.0f}. {again}"
    )
    later = str(max(1, math.ceil(wait))) if wait < INFINITE else None
    return ApiError(429, text, "rate_limit_error", "rate_limit_exceeded", retry_after=later)


def _too_large(who: str, limit: float, requested: float) -> ApiError:
    text = (
        f"Request too large for {who} on tokens per min (TPM): Limit {limit:.0f}, Requested {requested:.0f}. "
        "Shorten the messages or lower max_completion_tokens; waiting does not help."
    )
    return ApiError(429, text, "rate_limit_error", "rate_limit_exceeded")


def _over_budget(who: str, alert: BudgetAlert, day: date) -> ApiError:
    until = day + timedelta(days=1) if alert.period == "day" else _next_month(day)
    text = (
        f"The budget of {who} is spent: {_usd(alert.spent_usd)} of {_usd(alert.budget_usd)} for this "
        f"{alert.period}. It is renewed on {until.isoformat()} at 00:00 UTC; ask the operator to raise it."
    )
    return ApiError(429, text, "insufficient_quota", "insufficient_quota")


def _usd(amount: float) -> str:
    return f"${amount:.2f}" if amount >= 1 or not amount else f"${amount:.4g}"


def _next_month(day: date) -> date:
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _headers(subjects: Sequence[_Subject]) -> list[tuple[bytes, bytes]]:
    """Of requests and of tokens, that of the subject which has the smallest share left."""
    found: list[tuple[bytes, bytes]] = []
    requests = tokens = None
    least_requests = least_tokens = INFINITE
    for each in subjects:
        if (
            each.requests_limit < INFINITE
            and (share := _share(each.requests, each.requests_limit)) < least_requests
        ):
            requests, least_requests = each, share
        if each.tokens_limit < INFINITE and (share := _share(each.tokens, each.tokens_limit)) < least_tokens:
            tokens, least_tokens = each, share
    if requests is not None:
        level, limit, rate = requests.requests, requests.requests_limit, requests.requests_rate
        _tell(found, _REQUEST_HEADERS, limit, level, rate)
    if tokens is not None:
        _tell(found, _TOKEN_HEADERS, tokens.tokens_limit, tokens.tokens, tokens.tokens_rate)
    return found


def _share(level: float, limit: float) -> float:
    return level / limit if limit else 0.0


_REQUEST_HEADERS = (
    b"x-ratelimit-limit-requests",
    b"x-ratelimit-remaining-requests",
    b"x-ratelimit-reset-requests",
)
_TOKEN_HEADERS = (
    b"x-ratelimit-limit-tokens",
    b"x-ratelimit-remaining-tokens",
    b"x-ratelimit-reset-tokens",
)


def _tell(found: list[Header], names: tuple[bytes, ...], limit: float, level: float, rate: float) -> None:
    reset = (limit - level) / rate if rate else 0.0
    found.append((names[0], b"%d" % limit))
    found.append((names[1], b"%d" % level if level > 0 else b"0"))
    found.append((names[2], _duration(reset).encode()))


def _duration(seconds: float) -> str:
    """As Go writes durations.

    >>> [_duration(each) for each in (0, 0.1204, 1, 8.64, 360, 3725.5)]
    ['0s', '121ms', '1s', '8.64s', '6m0s', '1h2m5.5s']
    """
    milliseconds = math.ceil(round(seconds * 1000, 6))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
