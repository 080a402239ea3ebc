"""A policy file that would loosen a floor, or cannot be understood, is refused by its key."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.loader import DEFAULT_PATH, PolicyError, load_policy
from policies.policy import TIGHTER, Autonomy, Limits

DEFAULT = DEFAULT_PATH.read_text()


def with_use_case(text: str) -> str:
    return DEFAULT.replace("use_cases: {}", f"use_cases: {{story: {text}}}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("min_similarity: 0.95", "min_similarity: 0.94", "limits.min_similarity"),
        ("min_similarity: 0.95", "min_similarty: 0.95", "limits.min_similarty: unknown key"),
        ("min_safety: 0.99", "min_safety: .nan", "limits.min_safety"),
        ("min_safety: 0.99", "min_safety: 0.99\n  min_safety: 0.1", "written twice"),
        ("requires: [quality, provenance, calm]", "requires: [quality]", "deploy.requires: calm, provenance"),
        ("scan: {tier: observe, per_day: 48}", "scan: {tier: obsrve, per_day: 48}", "no tier 'obsrve'"),
        ("scan: {tier: observe, per_day: 48}", "scn: {tier: observe, per_day: 48}", "scn: unknown tool"),
        ("per_day: 40, spends: true", "per_day: 40, safety: true", "tools.test.safety"),
        ("low: reversible, medium: single", "low: single, medium: reversible", "higher risk"),
        ("low: reversible, medium", "medium", "no tier for low risk"),
        ("roles: [approver, admin]}\n  four", "roles: [viewer]}\n  four", "a viewer may not approve"),
        ("timezone: UTC ", "timezone: Mars/Base ", "timezone: 'Mars/Base'"),
        ("autonomy: act_with_approval", "autonomy: free", "autonomy"),
        ("blackouts: []", "blackouts: [{name: x, from: 18:00, to: 23:00}]", "0.from: quote the time"),
        ("blackouts: []", 'blackouts: [{name: x, from: "25:00"}]', "blackouts.0.from: '25:00' is not a time"),
        ("blackouts: []", 'blackouts: [{name: x, from: "08:00", to: "08:00"}]', "are equal"),
        ("version: 1", "version: [", "policy:"),
    ],
)  # fmt: skip
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    assert old in DEFAULT
    with pytest.raises(PolicyError) as caught:
        load_policy(DEFAULT.replace(old, new, 1))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("{limits: {min_similarity: 0.93}}", "use_cases.story.limits.min_similarity: 0.93 is looser"),
        ("{limits: {min_similarity: 1.5}}", "use_cases.story.limits.min_similarity"),
        ("{limits: {similarity: 0.99}}", "use_cases.story.limits.similarity: unknown key"),
        ("{autonomy: act}", "use_cases.story.autonomy: act is looser"),
        ("{at_least: {deplyo: four_eyes}}", "use_cases.story.at_least.deplyo"),
        ("{at_least: {deploy: eight_eyes}}", "no tier 'eight_eyes'"),
        ("{tier: observe}", "use_cases.story.tier: unknown key"),
    ],
)
def test_use_cases_may_only_tighten(case: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(with_use_case(case))
    assert message in str(caught.value)


@given(st.sampled_from(sorted(TIGHTER)), st.floats(0, 100, allow_nan=False))
@settings(max_examples=150, deadline=None)
def test_no_accepted_override_is_looser(name: str, value: float) -> None:
    try:
        policy = load_policy(with_use_case(f"{{limits: {{{name}: {value!r}}}}}"))
    except PolicyError:
        return
    base, own = getattr(policy.base.limits, name), getattr(policy.rules_for("story").limits, name)
    assert (own - base) * TIGHTER[name] >= 0


def test_every_limit_has_a_direction() -> None:
    assert {field.name for field in fields(Limits)} == set(TIGHTER)


def test_overrides_hold_for_their_use_case_alone() -> None:
    policy = load_policy(with_use_case("{limits: {min_similarity: 0.97}, autonomy: propose}"))
    assert policy.rules_for("story").limits.min_similarity == 0.97
    assert policy.rules_for("story").autonomy is Autonomy.PROPOSE
    assert policy.rules_for("other") == policy.base


def test_the_digest_is_of_the_meaning(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("# another comment\n" + DEFAULT)
    assert load_policy(path).digest == load_policy(DEFAULT).digest
    assert load_policy(DEFAULT.replace("per_day: 48", "per_day: 47")).digest != load_policy(DEFAULT).digest


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"gone\.yaml"):
        load_policy(tmp_path / "gone.yaml")


@pytest.mark.parametrize("text", ["", "[]", "just words"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        load_policy(text)


@pytest.mark.parametrize(
    ("day", "hour", "minute", "covered"),
    [  # UTC; Berlin is one hour ahead in January. The window opens on Friday 2026-01-02 at 22:00.
        (2, 20, 59, False), (2, 21, 0, True), (2, 23, 30, True), (3, 4, 59, True), (3, 5, 0, False),
        (1, 22, 0, False), (3, 22, 0, False),
    ],
)  # fmt: skip
def test_a_window_wraps_midnight_in_its_own_zone(day: int, hour: int, minute: int, covered: bool) -> None:
    text = DEFAULT.replace("timezone: UTC ", "timezone: Europe/Berlin ")
    policy = load_policy(
        text.replace("blackouts: []", 'blackouts: [{name: n, days: [fri], from: "22:00", to: "06:00"}]')
    )
    moment = datetime(2026, 1, day, hour, minute, tzinfo=UTC).astimezone(policy.zone)
    assert policy.base.blackouts[0].covers(moment) is covered


def test_a_window_follows_summer_time() -> None:
    text = DEFAULT.replace("timezone: UTC ", "timezone: Europe/Berlin ")
    policy = load_policy(text.replace("blackouts: []", 'blackouts: [{name: n, from: "18:00", to: "23:00"}]'))
    window, zone = policy.base.blackouts[0], policy.zone
    january, july = (datetime(2026, month, 1, 16, 30, tzinfo=UTC).astimezone(zone) for month in (1, 7))
    assert (window.covers(january), window.covers(july)) == (False, True)


def test_a_freeze_covers_its_dates_from_first_to_last() -> None:
    policy = load_policy(
        DEFAULT.replace("blackouts: []", "blackouts: [{name: f, first: 2026-12-20, last: 2027-01-02}]")
    )
    days = ["2026-12-19T23:59Z", "2026-12-20T00:00Z", "2027-01-02T23:59Z", "2027-01-03T00:00Z"]
    moments = [datetime.fromisoformat(day) for day in days]
    assert [policy.base.blackouts[0].covers(moment) for moment in moments] == [False, True, True, False]


@pytest.mark.parametrize("tool", ["rollback", "abort"])
def test_a_policy_without_the_way_back_is_refused(tool: str) -> None:
    lines = [line for line in DEFAULT_PATH.read_text().splitlines() if not line.startswith(f"  {tool}:")]
    with pytest.raises(PolicyError, match=f"tools.{tool}: the way back"):
        load_policy("\n".join(lines))
