"""What is removed is gone wherever it was, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from storage import deployments, evaluations, interactions, privacy, rollouts, use_cases
from storage.clock import now
from storage.database import Database
from storage.ids import new_id
from storage.interactions import copy_batch
from storage.privacy import Erased
from storage.vocabulary import Risk

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)
SECRET = [{"role": "user", "content": "my secret"}]


def _row(**values: Any) -> dict[str, Any]:
    return {"id": new_id("int"), "at": NOON, "kind": "live", "use_case": "story", "status": "ok", **values}


def _said(interaction_id: str) -> dict[str, Any]:
    return {"id": new_id("fb"), "at": NOON, "interaction_id": interaction_id, "name": "n", "value": 1}


async def _ids(db: Database, table: str = "interactions", column: str = "id") -> set[str]:
    async with db.connection() as connection:
        return set((await connection.execute(text(f"select {column} from {table}"))).scalars())


async def _erase(db: Database, raw: str | None = None) -> Erased:
    async with db.transaction() as connection:
        return await privacy.erase_user(connection, user_id="u_anna", raw=raw)


async def _expire(db: Database, *, before: datetime = NOON, limit: int = 100) -> int:
    async with db.transaction() as connection:
        return await privacy.expire(connection, use_case="story", before=before, limit=limit)


async def _rollout(db: Database) -> str:
    async with db.transaction() as connection:
        release = await _evaluated(connection)
        return await rollouts.create(
            connection, use_case="story", candidate_release_id=release, stable_release_id=release, plan={}
        )


async def _evaluated(connection: Any) -> str:
    """A release, with an evaluation ``eval_1`` of it."""
    await use_cases.declare(connection, name="story", risk=Risk.LOW)
    deployment = await deployments.ensure_deployment(
        connection, provider="lab", model="big", price_input=Decimal(0), price_output=Decimal(0)
    )
    release = await deployments.create_release(
        connection, use_case="story", deployment_id=deployment, created_by="test"
    )
    await evaluations.create(
        connection,
        evaluation_id="eval_1",
        use_case="story",
        candidate_release_id=release,
        stable_release_id=release,
        suite_digest="",
    )
    return release


async def test_a_user_is_erased_with_shadow_copies_feedback_and_links(db: Database) -> None:
    mine, copy = _row(user_id="u_anna"), _row(kind="shadow", use_case="story")
    copy["shadow_of"] = mine["id"]
    mine["findings"] = [{"category": "weapons"}]
    other, other_copy = _row(user_id="u_bert"), _row(kind="shadow")
    other_copy["shadow_of"] = other["id"]
    kept = _said(other["id"])
    await copy_batch(
        db, [mine, copy, other, other_copy, _row()], [_said(mine["id"]), _said(copy["id"]), kept]
    )
    assert await _erase(db) == Erased(interactions=2, feedback=2, incidents=1)
    left = await _ids(db)
    assert {other["id"], other_copy["id"]} < left
    assert len(left) == 3
    assert await _ids(db, "feedback") == {kept["id"]}
    assert await _ids(db, "incidents", "interaction_id") == {None}
    assert await _erase(db) == Erased()


async def test_older_rows_hold_the_name_itself(db: Database) -> None:
    await copy_batch(db, [_row(user_id="u_anna"), _row(user_id="anna"), _row(user_id="annabel")])
    assert (await _erase(db)).interactions == 1
    assert (await _erase(db, "anna")).interactions == 1
    assert await _ids(db, column="user_id") == {"annabel"}


async def test_many_rows_go_in_batches(db: Database) -> None:
    await copy_batch(db, [_row(user_id="u_anna") for _ in range(2500)])
    assert (await _erase(db)).interactions == 2500


async def test_replays_of_what_a_user_said_go_too(db: Database) -> None:
    original = _row(user_id="u_anna", request={"model": "story", "messages": SECRET})
    replay = _row(at=now(), kind="evaluation", request={"model": "story@rel", "messages": SECRET})
    innocent = [{"role": "user", "content": "a suite's question"}]
    suite = _row(at=now(), kind="evaluation", request={"messages": innocent})
    async with db.transaction() as connection:
        await _evaluated(connection)
        cases = [
            {"case_id": original["id"], "origin": "recorded", "messages": SECRET, "checks": []},
            {"case_id": "s1", "origin": "suite", "messages": innocent, "checks": []},
        ]
        await evaluations.plan_cases(connection, "eval_1", cases)
    await copy_batch(db, [original, replay, suite])
    assert await _erase(db) == Erased(interactions=2, evaluation_cases=1)
    assert await _ids(db) == {suite["id"]}
    assert await _ids(db, "evaluation_cases", "case_id") == {"s1"}


async def test_old_rows_expire_oldest_first_and_as_many_as_said(db: Database) -> None:
    ages = [3, 2, 1, 0]
    rows = [_row(at=NOON - timedelta(days=age)) for age in ages]
    foreign = _row(at=NOON - timedelta(days=9), use_case="essay")
    await copy_batch(db, [*rows, foreign], [_said(each["id"]) for each in rows])
    assert await _expire(db, limit=1) == 1
    assert await _ids(db) == {foreign["id"], *(each["id"] for each in rows[1:])}
    assert await _expire(db) == 2
    assert await _ids(db) == {foreign["id"], rows[3]["id"]}
    assert await _ids(db, "feedback", "interaction_id") == {rows[3]["id"]}
    assert await _expire(db) == 0


async def test_what_a_rollout_under_way_is_judged_by_stays(db: Database) -> None:
    rollout = await _rollout(db)
    row = _row(at=NOON - timedelta(days=1), rollout_id=rollout)
    await copy_batch(db, [row, _row(at=NOON - timedelta(days=1), rollout_id="ro_ended")])
    assert await _expire(db) == 1
    assert await _ids(db) == {row["id"]}
    async with db.transaction() as connection:
        found = await rollouts.find(connection, rollout)
        assert found is not None
        await rollouts.transition(connection, found, ended_at=now())
    assert await _expire(db) == 1
    async with db.connection() as connection:
        assert await interactions.find(connection, row["id"]) is None
