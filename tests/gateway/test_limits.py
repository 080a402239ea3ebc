"""Limits: what is admitted in any window, what is left after a refusal, and gateways that share a limit."""

from __future__ import annotations

import math
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.limits import Claim, Limiter, Ticket, clamp_tokens
from gateway.sidecar.messages import SubjectTotal, Totals
from storage.routing import Limits
from storage.vocabulary import OverBudget

TODAY = date(2026, 1, 30)
KEY, USE_CASE = "key:k", "use_case:story"


def claims(name: str = KEY, **limits: Any) -> list[Claim]:
    return [(name, Limits(**limits))]


def totals(day: date = TODAY, name: str = KEY, **values: Any) -> Totals:
    fields = dict.fromkeys(SubjectTotal.__struct_fields__[1:], 0) | values
    for each in ("day_cost_usd", "month_cost_usd", "own_cost_usd"):
        fields[each] = Decimal(str(fields[each]))
    return Totals(day, [SubjectTotal(name, **fields)])


def refused(
    limiter: Limiter, now: float, asked: list[Claim], tokens: float = 0, today: date = TODAY
) -> ApiError:
    with pytest.raises(ApiError) as caught:
        limiter.admit(now, today, asked, tokens)
    assert caught.value.status == 429
    return caught.value


def admitted(limiter: Limiter, now: float, asked: list[Claim], tokens: float = 0) -> Ticket | None:
    try:
        return limiter.admit(now, TODAY, asked, tokens)
    except ApiError:
        return None


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 20),
    steps=st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=80),
)
def test_no_window_lets_more_requests_through_than_the_limit_and_its_refill(
    limit: int, steps: list[tuple[float, bool]]
) -> None:
    limiter, asked, now, times = Limiter(), claims(requests_per_minute=limit), 0.0, []
    for passed, settles in steps:
        now += passed
        ticket = admitted(limiter, now, asked)
        if ticket is not None:
            times.append(now)
            if settles:
                ticket.settle(now, 3, 0.1)
    for first, begin in enumerate(times):
        for count, end in enumerate(times[first:], 1):
            assert count <= limit + (end - begin) * limit / 60 + 1e-6


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(10, 100),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 60), st.integers(0, 60)), max_size=60),
)
def test_true_tokens_stay_within_the_limit_and_the_refill_since_the_start(
    limit: int, steps: list[tuple[float, int, int]]
) -> None:
    limiter, asked, now, used = Limiter(), claims(tokens_per_minute=limit), 0.0, 0
    tickets: list[tuple[Ticket, int]] = []
    for passed, estimate, true in steps:
        now += passed
        ticket = admitted(limiter, now, asked, estimate)
        if ticket is not None:
            used += min(estimate, true)
            tickets.append((ticket, min(estimate, true)))
        elif tickets:
            done, tokens = tickets.pop(0)
            done.settle(now, tokens, 0)
        assert used <= limit + now * limit / 60 + 1e-6


@given(st.lists(st.sampled_from(["admit", "settle", "release", "again"]), max_size=60))
def test_concurrency_never_leaks(steps: list[str]) -> None:
    limiter = Limiter()
    asked = [*claims(concurrent=3), (USE_CASE, Limits(concurrent=2, requests_per_minute=40))]
    under_way: list[Ticket] = []
    ended: list[Ticket] = []
    for step in steps:
        if step == "admit":
            ticket = admitted(limiter, 0.0, asked)
            under_way += [ticket] if ticket else []
        elif step == "again":
            for ticket in ended:
                ticket.settle(0.0, 1, 1)
                ticket.release()
        elif under_way:
            ended.append(under_way.pop())
            ended[-1].settle(0.0, 1, 0) if step == "settle" else ended[-1].release()
        assert limiter.in_flight(KEY) == limiter.in_flight(USE_CASE) == len(under_way) <= 2


@settings(max_examples=50, deadline=None)
@given(rates=st.tuples(st.floats(1, 20), st.floats(1, 20)), interval=st.floats(0.25, 2))
def test_two_gateways_together_stay_within_an_interval_of_the_limit(
    rates: tuple[float, float], interval: float
) -> None:
    limit, asked, seconds = 120, claims(requests_per_minute=120), 120
    limiters, counts, due = (Limiter(), Limiter()), [0, 0], [0.0, 0.0]
    for limiter in limiters:
        limiter.absorb(0.0, totals())
    now = synced = 0.0
    while now < seconds:
        turn = due.index(min(due))
        now = due[turn]
        due[turn] += 1 / rates[turn]
        while synced + interval <= now:
            synced += interval
            for limiter, own in zip(limiters, counts, strict=True):
                limiter.absorb(synced, totals(day_requests=sum(counts), own_requests=own))
        ticket = admitted(limiters[turn], now, asked)
        if ticket is not None:
            counts[turn] += 1
            ticket.settle(now, 0, 0)
    unseen = 2 * sum(rates) * interval + 2
    assert sum(counts) <= limit + seconds * limit / 60 + unseen
    if sum(rates) > limit / 60:  # and the limit is not left unused
        assert sum(counts) >= min(limit, sum(rates) * seconds) * 0.9


def test_a_refusal_takes_nothing_from_the_other_claims() -> None:
    limiter = Limiter()
    wide: Claim = (KEY, Limits(requests_per_minute=2, tokens_per_minute=100, concurrent=2))
    refused(limiter, 0.0, [wide, (USE_CASE, Limits(requests_per_minute=0))], 50)
    assert limiter.in_flight(KEY) == 0
    assert limiter.admit(0.0, TODAY, [wide], 50)
    assert limiter.admit(0.0, TODAY, [wide], 50)


def test_a_refusal_names_limit_subject_and_time() -> None:
    limiter, asked = Limiter(), claims(requests_per_minute=6, tokens_per_minute=600)
    limiter.admit(0.0, TODAY, asked, 590)
    error = refused(limiter, 0.0, asked, 100)
    assert error.code == "rate_limit_exceeded"
    assert error.message == (
        "Rate limit reached for key 'k' on tokens per min (TPM): "
        "Limit 600, Used 590, Requested 100. Please try again in 9s."
    )
    assert error.retry_after == "9"
    assert limiter.admit(9.0, TODAY, asked, 100)
    assert refused(limiter, 9.0, asked, 601).retry_after is None
    assert "RPM" in refused(Limiter(), 0.0, claims(requests_per_minute=0)).message
    assert "at once" in refused(Limiter(), 0.0, claims(USE_CASE, concurrent=0)).message


def test_tokens_are_put_right_and_may_go_below_nothing() -> None:
    limiter, asked = Limiter(), claims(tokens_per_minute=60)
    limiter.admit(0.0, TODAY, asked, 10).settle(0.0, 90, 0)
    assert refused(limiter, 0.0, asked, 1).retry_after == "31"
    limiter.admit(31.0, TODAY, asked, 1).settle(31.0, 0, 0)
    assert limiter.admit(31.0, TODAY, asked, 1)


def test_released_is_as_if_never_asked() -> None:
    limiter, asked = Limiter(), claims(requests_per_minute=1, tokens_per_minute=10, concurrent=1)
    for _ in range(5):
        limiter.admit(0.0, TODAY, asked, 10).release()


@pytest.mark.parametrize("over", list(OverBudget))
def test_a_spent_budget_is_heeded_as_it_says(over: OverBudget) -> None:
    limiter, asked = Limiter(), claims(usd_per_day=Decimal(1), over_budget=over)
    limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 10, Decimal("1.0"))
    if over is OverBudget.BLOCK:
        error = refused(limiter, 0.0, asked)
        assert error.code == error.type == "insufficient_quota"
        assert error.retry_after is None
        assert "$1.00 of $1.00" in error.message
        assert "2026-01-31" in error.message
    else:
        ticket = limiter.admit(0.0, TODAY, asked, 0)
        assert ticket.downgrade is (over is OverBudget.DOWNGRADE)
        assert [(each.subject, each.period) for each in ticket.alerts] == [(KEY, "day")]
    assert not limiter.admit(1.0, TODAY + timedelta(days=1), asked, 0).alerts


def test_a_month_outlives_its_days_and_ends() -> None:
    limiter, asked = Limiter(), claims(usd_per_month=Decimal(1))
    limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 0, 1)
    assert "2026-02-01" in refused(limiter, 1.0, asked, today=TODAY + timedelta(days=1)).message
    assert limiter.admit(2.0, TODAY + timedelta(days=2), asked, 0)


def test_a_call_is_booked_on_the_day_it_began() -> None:
    limiter, asked = Limiter(), claims(usd_per_day=Decimal(1), usd_per_month=Decimal(9))
    late = limiter.admit(0.0, TODAY, asked, 0)
    limiter.admit(0.0, TODAY + timedelta(days=1), asked, 0).release()
    late.settle(1.0, 0, 5)
    assert limiter.spent(KEY) == (0.0, 5.0)


def test_spend_is_the_totals_and_what_was_counted_since() -> None:
    limiter, asked = Limiter(), claims(usd_per_month=Decimal(1000), usd_per_day=Decimal(1000))

    def spend(cost: float) -> None:
        limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 0, cost)

    spend(3)
    told = totals(day_cost_usd=10, month_cost_usd=50, own_requests=1, own_cost_usd=2)
    for _ in range(2):  # told twice
        limiter.absorb(1.0, told)
        assert limiter.spent(KEY) == (11.0, 51.0)
    spend(4)
    assert limiter.spent(KEY) == (15.0, 55.0)
    limiter.absorb(2.0, totals(day_cost_usd=12, month_cost_usd=52, own_requests=3, own_cost_usd=7))
    assert limiter.spent(KEY) == (12.0, 52.0)
    spend(1)
    limiter.absorb(3.0, totals(day_cost_usd=13, month_cost_usd=53))  # another sidecar
    assert limiter.spent(KEY) == (13.0, 53.0)
    spend(1)
    assert limiter.spent(KEY) == (14.0, 54.0)
    tomorrow = TODAY + timedelta(days=1)
    limiter.absorb(4.0, totals(tomorrow, month_cost_usd=54, own_requests=1, own_cost_usd=1))
    assert limiter.spent(KEY) == (0.0, 54.0)
    limiter.absorb(5.0, totals(day_cost_usd=99, month_cost_usd=99))  # late: of yesterday
    assert limiter.spent(KEY) == (0.0, 54.0)


def test_what_was_never_shipped_is_not_held_open_for_ever() -> None:
    limiter, asked = Limiter(), claims(usd_per_day=Decimal(1000))
    limiter.absorb(0.0, totals())
    limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 0, 3)
    for now in (1.0, 70.0):
        limiter.absorb(now, totals())
        assert limiter.spent(KEY)[0] == 3.0
    limiter.absorb(140.0, totals())
    assert limiter.spent(KEY)[0] == 0.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["spend", "other", "ship", "tell", "restart"]), st.integers(1, 9)),
        max_size=60,
    )
)
def test_spend_is_exact_once_all_is_shipped(steps: list[tuple[str, int]]) -> None:
    limiter, asked = Limiter(), claims(usd_per_day=Decimal(10**9))
    total = own = requests = waiting = 0

    def tell() -> None:
        limiter.absorb(1.0, totals(day_cost_usd=total, own_cost_usd=own, own_requests=requests))

    for step, amount in steps:
        match step:
            case "spend":
                limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 0, amount)
                waiting += amount
            case "other":
                total += amount
            case "ship":
                total, own, requests, waiting = total + waiting, own + waiting, requests + 1, 0
            case "restart":
                own = requests = 0
                tell()
            case _:
                tell()
    total, own, requests = total + waiting, own + waiting, requests + 1
    tell()
    true = total
    if "restart" not in [step for step, _ in steps]:
        assert limiter.spent(KEY)[0] == true
    assert limiter.spent(KEY)[0] >= true


def test_others_use_is_drained_at_most_to_a_minute_below_nothing() -> None:
    limiter, asked = Limiter(), claims(requests_per_minute=60, tokens_per_minute=600)
    limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 0, 0)
    limiter.absorb(0.0, totals(day_requests=500))  # before we knew: not of this minute
    limiter.admit(0.0, TODAY, asked, 0).settle(0.0, 0, 0)
    limiter.absorb(0.0, totals(day_requests=100_000, day_tokens=300, own_requests=2))
    assert refused(limiter, 0.0, asked).retry_after == "61"
    assert not admitted(limiter, 60.9, asked)
    assert admitted(limiter, 61.1, asked)


def test_other_limits_do_not_fill_a_bucket() -> None:
    limiter = Limiter()
    for _ in range(10):
        limiter.admit(0.0, TODAY, claims(requests_per_minute=10), 0)
    refused(limiter, 0.0, claims(requests_per_minute=100))
    assert limiter.admit(0.61, TODAY, claims(requests_per_minute=100), 0)
    assert limiter.admit(0.61, TODAY, claims(), 0).downgrade is False


def test_headers_are_those_of_the_tightest_subject() -> None:
    limiter = Limiter()
    asked = [
        *claims(requests_per_minute=60),
        (USE_CASE, Limits(requests_per_minute=10, tokens_per_minute=1000)),
    ]
    ticket = limiter.admit(0.0, TODAY, asked, 100)
    expected = {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"6s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"900",
        b"x-ratelimit-reset-tokens": b"6s",
    }
    assert dict(limiter.headers(ticket)) == expected == dict(limiter.headers_for(asked))
    assert limiter.headers(limiter.admit(0.0, TODAY, claims(), 5)) == []


def test_the_idle_are_forgotten_but_not_who_is_under_way_or_has_spent() -> None:
    limiter = Limiter(maximum=1000)
    for number in range(3000):
        limiter.admit(float(number), TODAY, claims(f"key:{number}", concurrent=1), 0).release()
    assert len(limiter) <= 1000
    limiter.admit(3000.0, TODAY, claims("key:busy", concurrent=1), 0)
    limiter.admit(3000.0, TODAY, claims("key:spent", usd_per_day=Decimal(9)), 0).settle(3000.0, 0, 1)
    limiter.absorb(90_000.0, totals())
    assert len(limiter) == 3
    limiter.absorb(190_000.0, totals(date(2026, 2, 1)))
    assert limiter.in_flight("key:busy") == 1
    assert len(limiter) == 1


LIMITED = (Limits(max_tokens=100), Limits(max_tokens=50), Limits())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"max_completion_tokens": 50}),
        ({"max_tokens": None}, {"max_tokens": None, "max_completion_tokens": 50}),
        ({"max_tokens": 99}, {"max_tokens": 50}),
        ({"max_tokens": "99"}, {"max_tokens": 50}),
        ({"max_completion_tokens": 99, "max_tokens": 20}, {"max_completion_tokens": 50, "max_tokens": 20}),
        ({"max_tokens": math.inf}, {"max_tokens": 50}),
    ],
)
def test_a_longer_answer_is_cut_down(body: dict[str, Any], expected: dict[str, Any]) -> None:
    before = dict(body)
    assert clamp_tokens(body, *LIMITED) == expected
    assert body == before


def test_what_is_short_enough_stays_the_same_object() -> None:
    body = {"max_tokens": 50}
    assert clamp_tokens(body, *LIMITED) is body
    assert clamp_tokens({}, Limits()) == {}
    assert clamp_tokens({}, *LIMITED, unnamed="max_tokens") == {"max_tokens": 50}
