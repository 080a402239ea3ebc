"""A snapshot survives the wire, and a delta leads from any snapshot to any other."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from storage.routing import (
    DeploymentSpec,
    Fallback,
    KeyRecord,
    Limits,
    PinnableRelease,
    Route,
    RouteArm,
    RoutingDelta,
    RoutingSnapshot,
    Serving,
    ShadowBudget,
    Waiting,
    applied,
    difference,
)
from storage.vocabulary import Arm, AssignmentUnit, Capture, OverBudget

NAMES = st.sampled_from(["a", "b", "c", "ü/é\n", ""])
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
MONEY = st.decimals(0, 1000, places=6)
SECONDS = st.none() | st.floats(0, 1e6)
COUNTS = st.none() | st.integers(0, 2**40)
MOMENTS = st.datetimes(timezones=st.just(UTC))
PARAMETERS = st.dictionaries(
    WORDS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2), max_size=2
)
SPECS = st.builds(
    DeploymentSpec,
    WORDS,
    WORDS,
    WORDS,
    PARAMETERS,
    st.none() | WORDS,
    WORDS,
    price_input=MONEY,
    price_output=MONEY,
)
ROUTES = st.builds(
    Route,
    WORDS,
    st.integers(1, 9),
    WORDS,
    st.none() | WORDS,
    st.sampled_from(AssignmentUnit),
    st.lists(st.builds(RouteArm, st.sampled_from(Arm), WORDS, SPECS, st.floats(0, 1)), max_size=2).map(tuple),
)
LIMITS = st.builds(
    Limits,
    requests_per_minute=COUNTS,
    concurrent=COUNTS,
    usd_per_day=st.none() | MONEY,
    over_budget=st.sampled_from(OverBudget),
)
FALLBACKS = st.builds(Fallback, WORDS, SPECS)
SERVINGS = st.builds(
    Serving,
    limits=LIMITS,
    waiting=st.builds(Waiting, SECONDS, SECONDS, SECONDS, st.integers(0, 3), SECONDS),
    capture=st.sampled_from(Capture),
    shadow=st.builds(ShadowBudget, st.none() | MONEY, COUNTS),
    fallbacks=st.lists(FALLBACKS, max_size=2).map(tuple),
    downgrade=st.none() | FALLBACKS,
)
KEYS = st.builds(
    KeyRecord,
    WORDS,
    WORDS,
    WORDS,
    st.frozensets(WORDS, max_size=2),
    st.none() | st.frozensets(WORDS, max_size=2),
    expires_at=st.none() | MOMENTS,
    previous_until=st.none() | MOMENTS,
    limits=LIMITS,
)
SNAPSHOTS = st.builds(
    RoutingSnapshot,
    st.integers(0, 2**40),
    st.dictionaries(NAMES, ROUTES, max_size=2),
    st.dictionaries(NAMES, SERVINGS, max_size=2),
    st.dictionaries(NAMES, st.builds(PinnableRelease, WORDS, SPECS), max_size=2),
    st.dictionaries(NAMES, KEYS, max_size=2),
)


@given(SNAPSHOTS)
def test_a_snapshot_survives_the_wire(snapshot: RoutingSnapshot) -> None:
    assert RoutingSnapshot.decode(snapshot.encode()) == snapshot


@given(SNAPSHOTS, SNAPSHOTS)
def test_a_delta_leads_from_one_snapshot_to_the_other(old: RoutingSnapshot, new: RoutingSnapshot) -> None:
    delta = difference(old, new)
    assert applied(old, delta) == new
    assert applied(old, RoutingDelta.decode(delta.encode())) == new


@given(SNAPSHOTS)
def test_there_is_nothing_between_a_snapshot_and_itself(snapshot: RoutingSnapshot) -> None:
    assert difference(snapshot, RoutingSnapshot.decode(snapshot.encode())).is_empty


@given(SNAPSHOTS, SNAPSHOTS)
def test_who_holds_the_old_snapshot_keeps_it(old: RoutingSnapshot, new: RoutingSnapshot) -> None:
    before = old.encode()
    applied(old, difference(old, new))
    assert old.encode() == before


def test_prices_are_exact_on_the_wire() -> None:
    spec = DeploymentSpec("dep", "p", "m", {}, None, "default", Decimal("0.000000150000"), Decimal("1E-12"))
    snapshot = RoutingSnapshot(releases={"rel": PinnableRelease("u", spec)})
    read = RoutingSnapshot.decode(snapshot.encode()).releases["rel"].deployment
    assert (str(read.price_input), read.price_output) == ("1.50000E-7", Decimal("1E-12"))
