"""The JSON API: every endpoint's happy path, and what it says when it will not."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from storage import audit, flags, identities, rollouts
from storage.database import Database
from tests.control.conftest import Clients
from tests.control.seeding import Seeded

LISTS = """
    use-cases deployments releases rollouts interactions incidents offerings offering-changes sources
    evaluations proposals approvals cycles decisions audit keys users
""".split()  # noqa: SIM905  # a table is easier to read so


@pytest.mark.parametrize("what", LISTS)
async def test_lists_are_lists_with_something_in_them(clients: Clients, what: str) -> None:
    answer = await clients.with_key("admin").get(f"/api/v1/{what}")
    assert answer.status_code == 200
    assert isinstance(answer.json(), list)
    assert answer.json()
    assert "secret" not in answer.text.lower() or what == "audit"


async def test_a_rollout_names_its_models_and_its_steps(clients: Clients, seeded: Seeded) -> None:
    client = clients.with_key("read")
    found = (await client.get("/api/v1/rollouts")).json()
    running = next(each for each in found if each["id"] == seeded.running)
    assert running["candidate"] == {"release_id": seeded.swift, "provider": "swift", "model": "swift-2"}
    assert running["stable"]["model"] == "storyteller-large"
    assert (running["state"], running["weight"]) == ("canary", 0.5)
    assert [step["status"] for step in running["steps"]] == ["done", "done", "done", "current", "ahead"]
    one = (await client.get(f"/api/v1/rollouts/{seeded.rolled_back}")).json()
    assert one["state"] == "rolled_back"
    assert [step["status"] for step in one["steps"]].count("failed") == 1
    rows = (await client.get(f"/api/v1/rollouts/{seeded.running}/measurements")).json()
    assert {"candidate", "stable", "e_value", "threshold"} <= set(rows[0]["metrics"][0])
    later = await client.get(f"/api/v1/rollouts/{seeded.running}/measurements?after={rows[-2]['id']}")
    assert [row["id"] for row in later.json()] == [rows[-1]["id"]]


async def test_pause_and_resume_are_left_for_the_run(clients: Clients, db: Database, seeded: Seeded) -> None:
    client = clients.with_key("operate")
    answer = await client.post(f"/api/v1/rollouts/{seeded.running}/pause")
    assert answer.status_code == 202
    assert answer.json()["requested"] == "pause"
    async with db.connection() as connection:
        row = await rollouts.find(connection, seeded.running)
        trail = await audit.list_rows(connection, subject=seeded.running, event="rollout.pause_requested")
    assert row is not None
    assert row.requested == "pause"
    assert trail[0].actor == "user:otto"
    ended = await client.post(f"/api/v1/rollouts/{seeded.rolled_back}/pause")
    assert ended.status_code == 409
    assert "has ended" in ended.json()["error"]["message"]


async def test_the_single_things(clients: Clients, seeded: Seeded) -> None:
    client = clients.with_key("read")
    route = (await client.get("/api/v1/use-cases/story-teller/route")).json()
    assert route["current"]["arms"][0]["model"] == "storyteller-large"
    assert len(route["history"]) == route["current"]["revision"]
    evaluation = (await client.get(f"/api/v1/evaluations/{seeded.evaluation}")).json()
    assert evaluation["cases"][0]["candidate_result"]["passed"] is False
    ranking = (await client.get("/api/v1/rankings/story-teller")).json()
    assert ranking["excluded"]["counts"] == {"not_reachable": 118, "price_unknown": 2}
    fleet = (await client.get("/api/v1/health")).json()
    assert {row["use_case"]: row["condition"] for row in fleet["rows"]}["summaries"] == "idle"
    agent = (await client.get("/api/v1/agent")).json()
    assert agent["paused"] is False
    assert any("swift-2" in line for line in agent["next"])
    policy = (await client.get("/api/v1/policies")).json()
    assert policy["limits" if "limits" in policy else "base"]
    assert (await client.get("/api/v1/audit/verify")).json()["intact"] is True


@pytest.mark.parametrize(
    "path",
    [
        "use-cases/none",
        "use-cases/none/route",
        "rollouts/ro_none",
        "rollouts/ro_none/measurements",
        "evaluations/ev_none",
        "proposals/prop_none",
        "rankings/none",
        "rankings/summaries",
        "nowhere",
    ],
)
async def test_what_is_not_there_is_said_in_a_sentence(clients: Clients, path: str) -> None:
    answer = await clients.with_key("read").get(f"/api/v1/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith(".")


async def test_offerings_are_searched_and_paged(clients: Clients) -> None:
    client = clients.with_key("read")
    found = (await client.get("/api/v1/offerings", params={"search": "bargain"})).json()
    assert [each["model"] for each in found] == ["bargain-mini"]
    assert found[0]["price_input"] == "0.0000001"
    reachable = (await client.get("/api/v1/offerings", params={"reachable": True})).json()
    assert len(reachable) == 3
    first = (await client.get("/api/v1/offerings", params={"limit": 100})).json()
    second = (await client.get("/api/v1/offerings", params={"limit": 100, "offset": 100})).json()
    assert len(first) == 100
    assert not {each["id"] for each in first} & {each["id"] for each in second}
    assert (await client.get("/api/v1/offerings", params={"limit": 0})).status_code == 422


async def test_a_proposal_is_filed_in_the_callers_name(clients: Clients) -> None:
    client = clients.with_key("operate")
    body = {"tool": "rank", "arguments": {"use_case": "story-teller"}, "reason": "prices moved"}
    answer = await client.post("/api/v1/proposals", json=body)
    assert answer.status_code == 201
    filed = answer.json()
    assert filed["proposer"] == "user:otto"
    assert filed["verdict"]["outcome"] == "allow"
    assert (await client.get(f"/api/v1/proposals/{filed['id']}")).json()["reason"] == "prices moved"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"tool": "format-disk", "arguments": {}}, 422, "unknown_tool"),
        ({"tool": "rank", "arguments": {}}, 422, "invalid_arguments"),
        ({"tool": "rank", "arguments": {"use_case": "story-teller", "price": 0}}, 422, "invalid_arguments"),
        ({"tool": "rank", "arguments": {"use_case": "none"}}, 404, "not_found"),
        ({"tool": "rank", "arguments": [], "reason": "x"}, 422, "invalid_request"),
        ({"tool": "rank", "verdict": "allow"}, 422, "invalid_request"),
    ],
)
async def test_a_bad_proposal_is_refused(
    clients: Clients, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await clients.with_key("operate").post("/api/v1/proposals", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def test_malformed_json_is_a_422(clients: Clients) -> None:
    client = clients.with_key("operate")
    headers = {"content-type": "application/json"}
    answer = await client.post("/api/v1/proposals", content=b'{"tool": ', headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_approving_binds_the_exact_proposal(clients: Clients, seeded: Seeded) -> None:
    client = clients.with_key("approve")
    waiting = (await client.get("/api/v1/approvals")).json()
    assert {each["id"] for each in waiting} == {seeded.waiting, seeded.own}
    chosen = next(each for each in waiting if each["id"] == seeded.waiting)
    assert chosen["waiting_since"]
    assert (chosen["approvals"], chosen["approvals_needed"]) == ([], 1)
    word = {"proposal_id": seeded.waiting, "word": "approve"}
    assert (await client.post("/api/v1/approvals", json=word)).status_code == 422, "on what, exactly?"
    moved = await client.post("/api/v1/approvals", json={**word, "binding_digest": "sha256:other"})
    assert (moved.status_code, moved.json()["error"]["code"]) == (409, "approval_refused")
    assert "read it again" in moved.json()["error"]["message"]
    word["binding_digest"] = chosen["binding_digest"]
    assert (await client.post("/api/v1/approvals", json=word)).status_code == 201
    again = await client.post("/api/v1/approvals", json=word)
    assert again.status_code == 409
    assert "already spoken" in again.json()["error"]["message"]
    spoken = (await client.get(f"/api/v1/proposals/{seeded.waiting}")).json()["approvals"]
    assert [(each["approver"], each["word"]) for each in spoken] == [("anna", "approve")]


async def test_nobody_approves_what_they_proposed(clients: Clients, seeded: Seeded) -> None:
    client = clients.with_key("approve")
    own = (await client.get(f"/api/v1/proposals/{seeded.own}")).json()
    word = {"proposal_id": seeded.own, "word": "approve", "binding_digest": own["binding_digest"]}
    answer = await client.post("/api/v1/approvals", json=word)
    assert answer.status_code == 409
    assert "whoever proposes cannot approve" in answer.json()["error"]["message"].lower()


async def test_an_operator_may_reject(clients: Clients, seeded: Seeded) -> None:
    client = clients.with_key("operate")
    found = (await client.get(f"/api/v1/proposals/{seeded.waiting}")).json()
    word = {"proposal_id": seeded.waiting, "word": "reject", "binding_digest": found["binding_digest"]}
    answer = await client.post("/api/v1/approvals", json={**word, "comment": "not today"})
    assert answer.status_code == 201
    assert answer.json()["status"] == "rejected"


async def test_the_pause_is_on_record(clients: Clients, db: Database) -> None:
    client = clients.with_key("operate")
    paused = (await client.post("/api/v1/agent/pause")).json()
    assert (paused["paused"], paused["paused_by"]) == (True, "user:otto")
    async with db.connection() as connection:
        assert await flags.get(connection, flags.AGENT_PAUSED) is True
    assert (await client.post("/api/v1/agent/resume")).json()["paused"] is False
    rows = (await client.get("/api/v1/audit", params={"subject": "agent"})).json()
    assert [row["event"] for row in rows] == ["agent.resumed", "agent.paused"]


async def test_a_key_is_shown_once_and_dies_when_revoked(clients: Clients, db: Database) -> None:
    client = clients.with_key("admin")
    body = {"name": "dashboard", "scopes": ["read"], "acts_as": "vera"}
    created = (await client.post("/api/v1/keys", json=body)).json()
    fresh = clients.nobody()
    fresh.headers["authorization"] = f"Bearer {created['key']}"
    assert (await fresh.get("/api/v1/use-cases")).status_code == 200
    assert created["key"] not in (await client.get("/api/v1/keys")).text
    assert (await client.delete(f"/api/v1/keys/{created['id']}")).status_code == 204
    assert (await fresh.get("/api/v1/use-cases")).status_code == 401
    assert (await client.delete("/api/v1/keys/none")).status_code == 404
    assert (await client.post("/api/v1/keys", json={**body, "scopes": ["everything"]})).status_code == 422
    assert (await client.post("/api/v1/keys", json={**body, "acts_as": "ghost"})).status_code == 422
    async with db.connection() as connection:
        stored = {each.id: each for each in await identities.list_keys(connection)}
    assert stored[created["id"]].revoked_at is not None


async def test_a_broken_audit_is_reported(clients: Clients, db: Database) -> None:
    import psycopg

    with psycopg.connect(db.conninfo, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # around the append-only trigger
        connection.execute("""update audit set data = '{"use_case":"forged"}' where sequence = 3""")
    found = (await clients.with_key("read").get("/api/v1/audit/verify")).json()
    assert (found["intact"], found["broken_at"]) == (False, 3)


async def test_openapi_describes_every_endpoint(clients: Clients, app: FastAPI) -> None:
    document = (await clients.with_key("read").get("/api/v1/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert {"/api/v1/rollouts", "/api/v1/approvals", "/api/v1/events"} <= set(document["paths"])
    assert not [path for path in document["paths"] if not path.startswith(("/api/v1/", "/healthz/"))]
    operations = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(operations) == len(set(operations))
    references = set(_references(document))
    assert references
    assert all(name in document["components"]["schemas"] for name in references)


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["$ref"]).rpartition("/")[2]] if "$ref" in node else []
        return own + [each for value in node.values() for each in _references(value)]
    return [each for value in node for each in _references(value)] if isinstance(node, list) else []
