"""Keys, use cases and what is kept of people, on the command line."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from meta_agent.secrets import pseudonym_key
from storage import audit, identities, usage
from storage.clock import now
from storage.database import Database
from storage.ids import new_id
from storage.interactions import copy_batch
from storage.pseudonyms import pseudonym
from storage.routes import load_snapshot
from storage.vocabulary import Role


def _create(control: Any, *arguments: str) -> dict[str, Any]:
    done = control.run("--json", "keys", "create", "app", *arguments)
    assert done.exit_code == 0, done.output
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def _valid(control: Any, token: str) -> bool:
    return control.ask(lambda connection: identities.find_key(connection, token)) is not None


# --- keys -----------------------------------------------------------------------------


def test_a_key_with_limits_and_scopes_of_the_gateway(control: Any) -> None:
    limits = (
        "--limit",
        "requests_per_minute=60",
        "--limit",
        "usd_per_day=2.5",
        "--limit",
        "over_budget=alert",
    )
    made = _create(control, "--scope", "infer", "--scope", "inspect", "--scope", "route", *limits)
    assert made["scopes"] == ["infer", "inspect", "route"]
    assert made["limits"]["requests_per_minute"] == 60
    assert "requests_per_minute 60" in control.run("keys", "list").stdout


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("rpm=5", "There is no limit rpm; there are requests_per_minute"),
        ("requests_per_minute", "no assignment; write name=value"),
        ("requests_per_minute=many", "requests_per_minute: Input should be a valid integer"),
        ("requests_per_minute=0", "requests_per_minute: Input should be greater than or equal to 1"),
        ("over_budget=shout", "over_budget: Input should be 'alert'"),
        ("=5", "no assignment"),
    ],
)
def test_a_limit_that_is_none_is_a_usage_error(installation: Any, limit: str, told: str) -> None:
    done = installation.run("keys", "create", "app", "--limit", limit)  # nobody needs to answer for this
    assert done.exit_code == 2
    assert told in done.stderr


def test_limits_are_shown_and_changed(control: Any) -> None:
    made = _create(control, "--limit", "requests_per_minute=60", "--limit", "concurrent=3")
    changed = control.run("--json", "keys", "limits", made["id"], "requests_per_minute=5", "concurrent=none")
    assert changed.exit_code == 0, changed.output
    assert json.loads(changed.stdout)["limits"] == {"requests_per_minute": 5}
    shown = control.run("keys", "limits", made["id"]).stdout
    assert "requests_per_minute 5" in shown
    assert "requests today" in shown
    assert control.run("keys", "limits", "nope").exit_code == 2
    assert control.run("keys", "limits", made["id"], "rpm=5").exit_code == 2


def test_a_new_secret_is_printed_once_and_the_old_one_goes_on(control: Any) -> None:
    made = _create(control)
    done = control.run("keys", "rotate", made["id"], "--grace-hours", "24", "--yes")
    assert done.exit_code == 0, done.output
    fresh = done.stdout.strip()
    assert fresh.startswith(f"ma_live_{made['id']}_")
    assert fresh not in done.stderr
    assert _valid(control, made["key"])
    assert _valid(control, fresh)
    last = control.run("keys", "rotate", made["id"], "--grace-hours", "0", "--yes").stdout.strip()
    assert [_valid(control, each) for each in (made["key"], fresh, last)] == [False, False, True]


def test_rotating_asks_first_and_says_what_it_will_not_do(control: Any) -> None:
    made = _create(control)
    assert control.run("keys", "rotate", made["id"]).exit_code == 2
    assert control.run("keys", "rotate", "nope", "--yes").exit_code == 2
    internal = control.run("keys", "rotate", "worker", "--yes")
    assert internal.exit_code == 2
    assert "installation's secret" in internal.stderr
    control.run("keys", "revoke", made["id"], "--yes")
    assert control.run("keys", "rotate", made["id"], "--yes").exit_code == 1


# --- use cases ------------------------------------------------------------------------


def test_a_use_case_is_shown_with_what_it_used_and_changed(control: Any) -> None:
    today = now().date()
    delta = usage.UsageDelta("use_case:story-teller", 7, 900, Decimal("1.25"), today)
    control.ask(lambda connection: usage.add(connection, [delta]))
    done = control.run(
        "use-cases", "set", "story-teller", "limits.requests_per_minute=60", "capture=redacted"
    )
    assert done.exit_code == 0, done.output
    assert "redacted" in done.stdout
    fallback = 'fallbacks=[{"provider": "lab", "model": "spare"}]'
    assert control.run("use-cases", "set", "story-teller", fallback).exit_code == 0
    snapshot = control.ask(load_snapshot)
    serving = snapshot.servings["story-teller"]
    assert serving.limits.requests_per_minute == 60
    assert serving.fallbacks[0].deployment.model == "spare"
    shown = control.run("use-cases", "show", "story-teller").stdout
    assert "1.25" in shown
    assert "requests_per_minute 60" in shown
    assert json.loads(control.run("--json", "use-cases", "show", "story-teller").stdout)["usage"]["live"]
    assert "story-teller" in control.run("use-cases", "list").stdout
    done = control.run("use-cases", "set", "story-teller", "limits=none", "capture=none", "fallbacks=none")
    assert done.exit_code == 0
    assert "story-teller" not in control.ask(load_snapshot).servings


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("capture=some", "'nothing', 'metadata', 'redacted' or 'full'"),
        ("limits.rpm=5", "limits.rpm: there is no such key"),
        ("capture", "no assignment"),
        ("retention_days=soon", "retention_days"),
    ],
)
def test_a_rule_that_is_none_is_a_usage_error(control: Any, assignment: str, told: str) -> None:
    done = control.run("use-cases", "set", "story-teller", assignment)
    assert done.exit_code == 2
    assert told.lower() in done.stderr.lower()


def test_an_operator_does_not_change_what_answers(control: Any) -> None:
    otto = control.key_of("otto", Role.OPERATOR)
    assert control.run("use-cases", "set", "story-teller", "capture=full", key=otto).exit_code == 3
    assert control.run("use-cases", "set", "nope", "capture=full").exit_code == 2


# --- privacy --------------------------------------------------------------------------


def test_a_user_is_forgotten(control: Any) -> None:
    known_as = pseudonym(pseudonym_key(control.settings.home), "anna@example.org")
    row = {"id": new_id("int"), "at": now(), "kind": "live", "use_case": "story-teller", "status": "ok"}

    async def say(connection: Any) -> None:
        database = Database(control.url, pool_size=1)
        try:
            await copy_batch(database, [{**row, "user_id": known_as}], [])
        finally:
            await database.close()

    control.ask(say)
    assert control.run("privacy", "erase", "--user", "anna@example.org").exit_code == 2
    done = control.run("--json", "privacy", "erase", "--user", "anna@example.org", "--yes")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["interactions"] == 1
    assert "anna" not in done.output

    async def left(connection: Any) -> int:
        return int((await connection.execute(text("select count(*) from interactions"))).scalar_one())

    assert control.ask(left) == 0
    rows = control.ask(lambda connection: audit.list_rows(connection, event="privacy.erased"))
    assert len(rows) == 1
    assert "anna" not in rows[0].data
    assert known_as not in rows[0].data
    empty = control.run("privacy", "erase", "--user", "", "--yes")
    assert empty.exit_code == 2


def test_only_admins_make_people_forgotten(control: Any) -> None:
    ben = control.key_of("ben", Role.APPROVER)
    assert control.run("privacy", "erase", "--user", "anna", "--yes", key=ben).exit_code == 3
