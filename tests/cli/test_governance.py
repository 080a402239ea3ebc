"""Approvals, rollouts, the agent, keys, the audit and the policy on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from meta_agent.cli import app
from storage import audit, decisions, proposals, rollouts
from storage.database import Connection
from storage.vocabulary import ProposalStatus, Role


def _waiting(control: Any) -> str:
    done = control.run("--json", "rollback", "story-teller", "--yes", "--no-wait")
    proposal_id: str = json.loads(done.stdout)["id"]
    assert control.judge(proposal_id) == ProposalStatus.WAITING
    return proposal_id


# --- approvals ------------------------------------------------------------------------


def test_a_person_sees_the_evidence_and_approves(control: Any) -> None:
    proposal_id = _waiting(control)
    ben = control.key_of("ben", Role.APPROVER)
    assert proposal_id in control.run("approvals", "list", key=ben).stdout
    shown = control.run("approvals", "show", proposal_id, key=ben).stdout
    assert "safety.alert" in shown
    assert "limit" in shown
    done = control.run("approvals", "approve", proposal_id, "--yes", "--comment", "go back", key=ben)
    assert done.exit_code == 0, done.output
    assert "safety.alert" in done.stdout
    (word,) = control.ask(lambda connection: proposals.list_approvals(connection, proposal_id))
    assert (word.approver, word.word, word.comment) == ("ben", "approve", "go back")


def test_the_proposer_cannot_approve(control: Any) -> None:
    done = control.run("approvals", "approve", _waiting(control), "--yes")
    assert done.exit_code == 3
    assert "whoever proposes cannot approve" in done.stderr.lower()


def test_a_rejection_ends_a_proposal(control: Any) -> None:
    proposal_id = _waiting(control)
    ben = control.key_of("ben", Role.APPROVER)
    done = control.run("--json", "approvals", "reject", proposal_id, "--yes", "--comment", "not now", key=ben)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["status"] == "rejected"
    again = control.run("approvals", "approve", proposal_id, "--yes", key=ben)
    assert again.exit_code == 1
    assert "rejected" in again.stderr


def test_approving_asks_first(control: Any) -> None:
    done = control.run("approvals", "approve", _waiting(control))
    assert done.exit_code == 2
    assert "--yes" in done.stderr


@pytest.mark.parametrize("name", ["prop_nope", "../keys", "a b", "."])
def test_an_unknown_proposal_is_a_usage_error(control: Any, name: str) -> None:
    assert control.run("approvals", "show", name).exit_code == 2


# --- rollouts -------------------------------------------------------------------------

PLAN = {
    "shadow": {"min_pairs": 20},
    "canary": [{"weight": 0.1, "min_units": 30}, {"weight": 1.0, "min_units": 30}],
}


def _rollout(control: Any, **changes: Any) -> str:
    stable, candidate = control.release("stable-model"), control.release("small")
    analysis = {
        "phase": "running",
        "why": "12 of 30 units",
        "metrics": [
            {"name": "failure", "phase": "running", "candidate": 0.01, "stable": 0.02, "e_value": 0.5,
             "threshold": 40.0, "units_candidate": 12, "units_stable": 90, "why": "no evidence"}
        ],
    }  # fmt: skip

    async def make(connection: Connection) -> str:
        rollout_id = await rollouts.create(
            connection,
            use_case="story-teller",
            candidate_release_id=candidate,
            stable_release_id=stable,
            plan=PLAN,
        )
        found = await rollouts.find(connection, rollout_id)
        assert found is not None
        moved = {"state": "canary", "step": 0, "weight": 0.1, "analysis": analysis, **changes}
        assert await rollouts.transition(connection, found, **moved)
        return rollout_id

    rollout_id: str = control.ask(make)
    return rollout_id


def _end(control: Any, rollout_id: str, state: str) -> None:
    async def end(connection: Connection) -> None:
        found = await rollouts.find(connection, rollout_id)
        assert found is not None
        from storage.clock import now

        assert await rollouts.transition(connection, found, state=state, reason="the end", ended_at=now())

    control.ask(end)


def test_a_rollout_is_shown_by_id_and_by_use_case(control: Any) -> None:
    rollout_id = _rollout(control)
    assert rollout_id in control.run("rollout", "list").stdout
    for name in (rollout_id, "story-teller"):
        shown = control.run("rollout", "show", name)
        assert shown.exit_code == 0, shown.output
        for words in ("lab/small", "Shadow", "10 % 12/30", "failure", "0.5 of 40"):
            assert words in shown.stdout
    assert control.run("rollout", "show", "nobody").exit_code == 2


@pytest.mark.parametrize(("state", "code"), [("promoted", 0), ("rolled_back", 1), ("aborted", 1)])
def test_watching_ends_with_the_rollout(control: Any, state: str, code: int) -> None:
    rollout_id = _rollout(control)
    process = control.start("--json", "rollout", "watch", "story-teller", "--interval", "0.1")
    first = json.loads(process.stdout.readline())
    assert (first["id"], first["state"]) == (rollout_id, "canary")
    _end(control, rollout_id, state)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert json.loads(out.splitlines()[-1])["state"] == state


@pytest.mark.parametrize("wish", ["pause", "resume"])
def test_a_wish_is_left_for_the_run(control: Any, wish: str) -> None:
    rollout_id = _rollout(control)
    assert control.run("rollout", wish, rollout_id).exit_code == 0
    found = control.ask(lambda connection: rollouts.find(connection, rollout_id))
    assert found.requested == wish


def test_aborting_is_a_proposal_of_its_own(control: Any) -> None:
    rollout_id = _rollout(control)
    assert control.run("rollout", "abort", rollout_id).exit_code == 2
    done = control.run("--json", "rollout", "abort", rollout_id, "--yes", "--no-wait")
    assert done.exit_code in (0, 4), done.output
    assert json.loads(done.stdout)["arguments"] == {"rollout_id": rollout_id}
    _end(control, rollout_id, "aborted")
    late = control.run("rollout", "abort", rollout_id, "--yes")
    assert late.exit_code == 2
    assert "has ended" in late.stderr


# --- the agent ------------------------------------------------------------------------


def test_the_agent_is_paused_and_resumed(control: Any) -> None:
    assert "active" in control.run("agent", "status").stdout
    assert "paused" in control.run("agent", "pause").stdout
    assert json.loads(control.run("--json", "agent", "status").stdout)["paused"] is True
    assert json.loads(control.run("agent", "resume", "--json").stdout)["paused"] is False


def test_decisions_are_listed_with_their_reasons(control: Any) -> None:
    async def record(connection: Connection) -> None:
        await decisions.record(
            connection, actor="agent", reason="cheaper by half", signals=[], action={"tool": "test"}
        )

    control.ask(record)
    assert "cheaper by half" in control.run("agent", "decisions").stdout


# --- the audit ------------------------------------------------------------------------


def _append(installation: Any, number: int) -> None:
    async def append(connection: Connection) -> None:
        await audit.append(
            connection, actor="t", event="thing.done", subject=f"s{number}", data={"n": number}
        )

    installation.ask(append)


def test_the_audit_is_listed(control: Any) -> None:
    for number in range(3):
        _append(control, number)
    rows = json.loads(control.run("--json", "audit", "list", "--event", "thing.done").stdout)
    assert [row["subject"] for row in rows] == ["s2", "s1", "s0"]
    assert "thing.done" in control.run("audit", "list", "--subject", "s1").stdout


def test_the_chain_is_verified_without_any_server(installation: Any) -> None:
    for number in range(5):
        _append(installation, number)
    done = installation.run("audit", "verify")
    assert done.exit_code == 0, done.output
    assert "intact" in done.stdout

    async def tamper(connection: Connection) -> None:
        await connection.execute(text("alter table audit disable trigger all"))
        await connection.execute(text("update audit set data = '{}' where sequence = 4"))

    installation.ask(tamper)
    broken = installation.run("--json", "audit", "verify")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["broken_at"] == 4
    assert "row 4" in broken.stderr


def test_a_database_that_is_down_is_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "meta-agent.yaml"
    config.write_text("database: {url: 'postgresql://nobody@127.0.0.1:1/none'}\n")
    done = CliRunner().invoke(app, ["--config", str(config), "audit", "verify"])
    assert done.exit_code == 5
    assert "database.url" in done.stderr
    assert "Traceback" not in done.output


# --- keys -----------------------------------------------------------------------------


def test_a_key_is_made_used_and_revoked(control: Any) -> None:
    created = json.loads(
        control.run("--json", "keys", "create", "viewer", "--scope", "read", "--days", "1").stdout
    )
    assert control.run("agent", "status", key=created["key"]).exit_code == 0
    assert control.run("agent", "pause", key=created["key"]).exit_code == 3
    assert created["id"] in control.run("keys", "list").stdout
    assert created["key"] not in control.run("keys", "list").stdout
    assert control.run("keys", "revoke", created["id"], "--yes").exit_code == 0
    refused = control.run("agent", "status", key=created["key"])
    assert refused.exit_code == 2
    assert "--key" in refused.stderr


def test_a_new_key_is_alone_on_stdout(control: Any) -> None:
    done = control.run("keys", "create", "story-teller app", "--use-case", "story-teller")
    assert done.stdout.startswith("ma_live_")
    assert len(done.stdout.split()) == 1
    assert control.run("keys", "create", "x", "--scope", "everything").exit_code == 2


# --- the policy -----------------------------------------------------------------------


def test_the_policy_is_tried_and_shown(installation: Any) -> None:
    done = installation.run("--json", "policy", "test")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["broken"] == 0
    assert json.loads(done.stdout)["rows"] > 100
    assert "deploy" in installation.run("policy", "test").stdout
    assert "quality.safety" in installation.run("policy", "test", "--all").stdout
    shown = installation.run("policy", "show")
    assert "min similarity" in shown.stdout
    assert "digest" in json.loads(installation.run("--json", "policy", "show").stdout)


def test_a_broken_policy_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\nspeed: 3\n")
    config = tmp_path / "meta-agent.yaml"
    config.write_text("policies: policy.yaml\n")
    done = CliRunner().invoke(app, ["--config", str(config), "policy", "test"])
    assert done.exit_code == 2
    assert "policy.yaml" in done.stderr
