"""The gateway's affairs over the API: limits and secrets of keys, rules of serving, usage, erasure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from meta_agent import privacy as erasing
from meta_agent.api.app import create_app
from meta_agent.secrets import pseudonym_key
from meta_agent.settings import Settings
from policies.policy import Policy
from storage import audit, identities, usage, use_cases
from storage.clock import now
from storage.database import Database
from storage.ids import new_id
from storage.interactions import copy_batch
from storage.pseudonyms import pseudonym
from storage.routes import load_snapshot
from storage.usage import UsageDelta
from tests.control.conftest import Clients

NAME = "Anna Müller <anna@example.org>"


async def _made(clients: Clients, **body: Any) -> dict[str, Any]:
    answer = await clients.with_key("admin").post(
        "/api/v1/keys", json={"name": "app", "scopes": ["infer"]} | body
    )
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def _trail(db: Database, subject: str) -> list[tuple[str, dict[str, Any]]]:
    async with db.connection() as connection:
        rows = await audit.list_rows(connection, subject=subject)
    return [(each.event, json.loads(each.data)) for each in rows]


async def _valid(db: Database, token: str) -> bool:
    async with db.connection() as connection:
        return await identities.find_key(connection, token) is not None


# --- keys -----------------------------------------------------------------------------


async def test_a_key_is_made_with_limits(clients: Clients, db: Database) -> None:
    limits = {"requests_per_minute": 60, "usd_per_day": 0.5, "over_budget": "alert"}
    made = await _made(clients, scopes=["infer", "inspect", "route"], limits=limits)
    assert made["limits"] == {"requests_per_minute": 60, "usd_per_day": "0.5", "over_budget": "alert"}
    async with db.connection() as connection:
        known = (await load_snapshot(connection)).keys[made["id"]]
    assert (known.limits.requests_per_minute, known.limits.usd_per_day) == (60, Decimal("0.5"))
    [(event, data)] = await _trail(db, made["id"])
    assert event == "key.created"
    assert data["limits"] == made["limits"]
    assert made["key"].rpartition("_")[2] not in json.dumps(data)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"rpm": 5}, "body.limits.rpm"),
        ({"requests_per_minute": "many"}, "body.limits.requests_per_minute"),
        ({"requests_per_minute": 0}, "greater than or equal to 1"),
        ({"usd_per_day": -1}, "greater than or equal to 0"),
        ({"over_budget": "shout"}, "'alert', 'downgrade' or 'block'"),
    ],
)
async def test_limits_that_mean_nothing_are_refused(
    clients: Clients, limits: dict[str, Any], told: str
) -> None:
    admin = clients.with_key("admin")
    answer = await admin.post("/api/v1/keys", json={"name": "x", "scopes": ["infer"], "limits": limits})
    assert answer.status_code == 422
    assert told in answer.json()["error"]["message"]


async def test_limits_are_changed_one_by_one(clients: Clients, db: Database) -> None:
    made = await _made(clients, limits={"requests_per_minute": 60, "concurrent": 4})
    admin, path = clients.with_key("admin"), f"/api/v1/keys/{made['id']}"
    changed = await admin.patch(path, json={"limits": {"requests_per_minute": 5, "concurrent": None}})
    assert changed.json()["limits"] == {"requests_per_minute": 5}
    later = now() + timedelta(days=3)
    body = {"name": "new name", "use_cases": ["summaries"], "expires_at": later.isoformat()}
    changed = await admin.patch(path, json=body)
    assert changed.json()["use_cases"] == ["summaries"]
    assert changed.json()["limits"] == {"requests_per_minute": 5}
    assert (await admin.patch(path, json={"limits": None})).json()["limits"] == {}
    assert (await admin.patch(path, json={})).status_code == 200
    assert [event for event, _ in await _trail(db, made["id"])] == [*["key.changed"] * 3, "key.created"]
    assert (await admin.patch("/api/v1/keys/nope", json={"name": "x"})).status_code == 404
    past = (now() - timedelta(days=1)).isoformat()
    assert (await admin.patch(path, json={"expires_at": past})).status_code == 422


async def test_a_rotated_key_has_two_secrets_for_a_while(clients: Clients, db: Database) -> None:
    made = await _made(clients)
    admin, path = clients.with_key("admin"), f"/api/v1/keys/{made['id']}/rotate"
    rotated = (await admin.post(path, json={"grace_hours": 1})).json()
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert rotated["previous_until"]
    assert await _valid(db, made["key"])
    assert await _valid(db, rotated["key"])
    last = (await admin.post(path, json={"grace_hours": 0})).json()
    assert [await _valid(db, each["key"]) for each in (made, rotated, last)] == [False, False, True]
    told = json.dumps(await _trail(db, made["id"]))
    assert told.count("key.rotated") == 2
    assert not any(each["key"].rpartition("_")[2] in told for each in (made, rotated, last))
    assert "key" not in (await admin.get("/api/v1/keys")).json()[0]


async def test_what_cannot_be_rotated(clients: Clients, db: Database) -> None:
    admin = clients.with_key("admin")
    assert (await admin.post("/api/v1/keys/nope/rotate", json={})).status_code == 404
    made = await _made(clients)
    await admin.delete(f"/api/v1/keys/{made['id']}")
    answer = await admin.post(f"/api/v1/keys/{made['id']}/rotate", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_not_valid")
    for path in ("/api/v1/keys/worker/rotate", "/api/v1/keys/operator/rotate"):
        answer = await admin.post(path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "internal_key")
    assert (await admin.patch("/api/v1/keys/worker", json={"name": "x"})).status_code == 422


# --- use cases ------------------------------------------------------------------------


@pytest.fixture
async def served(db: Database, policy: Policy) -> AsyncIterator[Clients]:
    """Clients of a control plane whose settings know a provider."""
    lab = {"name": "lab", "kind": "openai_compatible", "base_url": "http://127.0.0.1:9/v1"}
    found = Clients(create_app(db, Settings(providers=[lab]), policy))
    yield found
    await found.close()


async def test_rules_of_serving_are_changed(served: Clients, db: Database) -> None:
    anna, path = served.with_key("approve"), "/api/v1/use-cases/summaries"
    serving = {
        "limits": {"requests_per_minute": 60},
        "capture": "redacted",
        "retention_days": 7,
        "fallbacks": [{"provider": "lab", "model": "spare"}],
    }
    changed = await anna.patch(path, json={"serving": serving})
    assert changed.status_code == 200, changed.text
    [fallback] = changed.json()["serving"]["fallbacks"]
    again = await anna.patch(path, json={"serving": {"capture": None}})
    assert again.json()["serving"] == {
        "limits": {"requests_per_minute": 60},
        "retention_days": 7,
        "fallbacks": [fallback],
    }
    assert (await anna.get(path)).json() == again.json()
    async with db.connection() as connection:
        live = (await load_snapshot(connection)).servings["summaries"]
    assert live.fallbacks[0].deployment.model == "spare"
    assert [event for event, _ in await _trail(db, "summaries")][:2] == ["serving.changed"] * 2


async def test_what_was_read_can_be_written_back(served: Clients, db: Database) -> None:
    anna, path = served.with_key("approve"), "/api/v1/use-cases/summaries"
    given = {"limits": {"usd_per_day": 1.5}, "downgrade": {"provider": "lab", "model": "spare"}}
    read = (await anna.patch(path, json={"serving": given})).json()
    written = await anna.patch(path, json={"serving": read["serving"]})
    assert written.json() == read
    assert [event for event, _ in await _trail(db, "summaries")].count("serving.changed") == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"serving": {"capture": "some"}}, "Capture: Input should be 'nothing', 'metadata'"),
        ({"serving": {"fallbacks": [{"provider": "ghost", "model": "x"}]}}, "ghost, which is not configured"),
        ({"serving": {"surprise": 1}}, "there is no such key"),
        ({"serving": 5}, "body.serving"),
        ({"risk": "low"}, "body.risk"),
        ({}, "body.serving"),
    ],
)
async def test_rules_that_cannot_be_are_refused(served: Clients, body: dict[str, Any], told: str) -> None:
    answer = await served.with_key("approve").patch("/api/v1/use-cases/summaries", json=body)
    assert answer.status_code == 422
    assert told.lower() in answer.json()["error"]["message"].lower()


async def test_only_whoever_approves_changes_what_answers(served: Clients, db: Database) -> None:
    path, body = "/api/v1/use-cases/summaries", {"serving": {"capture": "nothing"}}
    assert (await served.with_key("operate").patch(path, json=body)).status_code == 403
    assert (await served.with_key("approve").patch("/api/v1/use-cases/nope", json=body)).status_code == 404
    async with db.connection() as connection:
        found = await use_cases.find(connection, "summaries")
    assert found is not None
    assert found.serving == {}


async def test_what_was_used_is_told(clients: Clients, db: Database) -> None:
    today = now().date()
    async with db.transaction() as connection:
        await usage.add(
            connection,
            [
                UsageDelta("use_case:summaries", 3, 400, Decimal("0.25"), today),
                UsageDelta("shadow:summaries", 1, 100, Decimal("0.05"), today),
                UsageDelta("key:seed-infer", 2, 300, Decimal("0.2"), today),
            ],
        )
    read = (await clients.with_key("read").get("/api/v1/use-cases/summaries/usage")).json()
    assert (read["live"]["day_requests"], read["live"]["day_cost_usd"]) == (3, "0.25")
    assert (read["shadow"]["day_tokens"], read["shadow"]["month_cost_usd"]) == (100, "0.05")
    assert (await clients.with_key("read").get("/api/v1/keys/seed-infer/usage")).status_code == 403
    admin = clients.with_key("admin")
    assert (await admin.get("/api/v1/keys/seed-infer/usage")).json()["day_requests"] == 2
    assert (await admin.get("/api/v1/keys/nope/usage")).status_code == 404
    assert (await admin.get("/api/v1/use-cases/nope/usage")).status_code == 404


# --- privacy --------------------------------------------------------------------------


@pytest.fixture
async def private(db: Database, policy: Policy, tmp_path: Path) -> AsyncIterator[Clients]:
    """Clients of a control plane with a home, and in it the key of pseudonyms."""
    found = Clients(create_app(db, Settings(home=tmp_path), policy))
    yield found
    await found.close()


async def _say(db: Database, user: str, count: int) -> None:
    rows: list[dict[str, Any]] = [
        {"id": new_id("int"), "at": now(), "kind": "live", "use_case": "summaries", "status": "ok"}
        for _ in range(count)
    ]
    await copy_batch(db, [{**each, "user_id": user} for each in rows], [])


async def test_a_user_is_forgotten_by_pseudonym_and_by_name(
    private: Clients, db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known_as = pseudonym(pseudonym_key(tmp_path), NAME)
    await _say(db, known_as, 3)
    await _say(db, NAME, 2)
    await _say(db, "u_somebody", 1)
    answer = await private.with_key("admin").post("/api/v1/privacy/erasures", json={"user": NAME})
    assert answer.status_code == 201, answer.text
    erased = answer.json()
    assert (erased["interactions"], erased["complete"]) == (5, True)
    trail = await _trail(db, erased["id"])
    assert [event for event, _ in trail] == ["privacy.erased", "privacy.erasing"]
    assert trail[0][1]["interactions"] == 5
    told = json.dumps(trail) + answer.text + caplog.text
    assert not any(each in told for each in ("Anna", "example.org", known_as))
    again = await private.with_key("admin").post("/api/v1/privacy/erasures", json={"user": NAME})
    assert again.json()["interactions"] == 0


async def test_long_erasures_are_done_in_several_goes(
    private: Clients, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _say(db, NAME, 1)
    monkeypatch.setattr(erasing, "_ERASING_SECONDS", 0.0)
    admin = private.with_key("admin")
    first = (await admin.post("/api/v1/privacy/erasures", json={"user": NAME})).json()
    assert not first["complete"]
    monkeypatch.setattr(erasing, "_ERASING_SECONDS", 5.0)
    second = (await admin.post("/api/v1/privacy/erasures", json={"user": NAME})).json()
    assert second["complete"]
    assert first["interactions"] + second["interactions"] == 1


async def test_only_admins_make_people_forgotten(private: Clients) -> None:
    for scope in ("read", "operate", "approve"):
        answer = await private.with_key(scope).post("/api/v1/privacy/erasures", json={"user": NAME})
        assert answer.status_code == 403
    refused = await private.with_key("admin").post("/api/v1/privacy/erasures", json={"user": ""})
    assert refused.status_code == 422
