"""Keys: their form, their rotation without downtime, and what a gateway is told of them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest

from storage import identities, routes
from storage.api_keys import format_key, new_secret, sha256, split_key
from storage.clock import now
from storage.database import Database
from storage.pseudonyms import pseudonym
from storage.routing import KeyRecord, Limits


async def _key(db: Database, secret: str = "first", **values: object) -> str:
    async with db.transaction() as connection:
        return await identities.ensure_key(
            connection,
            key_id="app",
            secret=secret,
            name="app",
            scopes=["infer"],
            **values,  # type: ignore[arg-type]  # whatever the test says
        )


async def _rotate(db: Database, grace: timedelta = timedelta(hours=1)) -> str:
    async with db.transaction() as connection:
        return await identities.rotate_key(connection, "app", grace=grace)


async def _is_valid(db: Database, token: str) -> bool:
    async with db.connection() as connection:
        return await identities.find_key(connection, token) is not None


async def _record(db: Database) -> KeyRecord:
    async with db.connection() as connection:
        return (await routes.load_snapshot(connection)).keys["app"]


def test_what_is_formatted_is_split_again() -> None:
    secret = new_secret()
    assert split_key(format_key("app-1", secret)) == ("app-1", secret)
    assert [split_key(each) for each in ("", "ma_live_", "ma_live_a_", "xma_live_a_b", "ma_live__b")] == [
        None
    ] * 5


async def test_both_secrets_work_during_the_grace_and_the_third_ends_the_first(db: Database) -> None:
    first = await _key(db)
    second = await _rotate(db)
    assert second != first
    assert [await _is_valid(db, each) for each in (first, second)] == [True, True]
    third = await _rotate(db)
    assert [await _is_valid(db, each) for each in (first, second, third)] == [False, True, True]


async def test_without_grace_the_old_secret_is_worthless_at_once(db: Database) -> None:
    first = await _key(db)
    second = await _rotate(db, timedelta(0))
    assert [await _is_valid(db, each) for each in (first, second)] == [False, True]
    assert (await _record(db)).previous_sha256 is None


async def test_a_gateway_is_told_of_both_secrets_and_of_the_limits(db: Database) -> None:
    await _key(db, limits={"requests_per_minute": 60, "usd_per_day": "2.50"})
    second = await _rotate(db)
    record = await _record(db)
    assert (record.previous_sha256, record.secret_sha256) == (sha256("first"), sha256(second.split("_")[-1]))
    assert record.previous_until is not None
    assert record.previous_until > now()
    assert record.limits == Limits(requests_per_minute=60, usd_per_day=2.5)  # type: ignore[arg-type]  # equal


async def test_ensuring_a_key_again_keeps_the_grace_and_another_secret_ends_it(db: Database) -> None:
    first = await _key(db)
    second = await _rotate(db)
    await _key(db, second.split("_")[-1])
    assert await _is_valid(db, first)
    third = await _key(db, "third")
    assert [await _is_valid(db, each) for each in (first, second, third)] == [False, False, True]


async def test_a_revoked_an_expired_and_an_unknown_key_are_not_rotated(db: Database) -> None:
    with pytest.raises(LookupError):
        await _rotate(db)
    await _key(db, expires_at=now() - timedelta(seconds=1))
    with pytest.raises(LookupError):
        await _rotate(db)
    first = await _key(db)
    second = await _rotate(db)
    async with db.transaction() as connection:
        assert await identities.revoke_key(connection, "app")
    with pytest.raises(LookupError):
        await _rotate(db)
    assert [await _is_valid(db, each) for each in (first, second)] == [False, False]


async def test_limits_that_mean_nothing_are_refused(db: Database) -> None:
    for limits in (
        {"requests_per_minit": 1},
        {"usd_per_day": "NaN"},
        {"concurrent": -1},
        {"over_budget": "x"},
    ):
        with pytest.raises(ValueError, match="limits"):
            await _key(db, limits=limits)


def test_a_pseudonym_is_the_same_for_the_same_and_another_with_another_key() -> None:
    assert pseudonym(b"k", "anna") == pseudonym(b"k", "anna") == "u_" + pseudonym(b"k", "anna")[2:]
    assert len({pseudonym(b"k", "anna"), pseudonym(b"l", "anna"), pseudonym(b"k", "Anna")}) == 3
    assert len(pseudonym(b"k", "\ud800")) == 28
    with pytest.raises(ValueError, match="key"):
        pseudonym(b"", "anna")


def test_what_a_gateway_worker_imports_brings_no_database() -> None:
    modules = "storage.api_keys, storage.routing, storage.pseudonyms, storage.ids, storage.vocabulary"
    check = f"import sys, {modules}; print(sorted({{'sqlalchemy', 'psycopg', 'alembic'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"
