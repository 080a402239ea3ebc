"""The verbs against the real control plane: what is filed, what is shown, and how it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest

from storage import evaluations, proposals, registry
from storage.database import Connection
from storage.proposals import Proposal
from storage.vocabulary import EvaluationStatus, ProposalStatus


def _filed(control: Any) -> list[Proposal]:
    found: list[Proposal] = control.ask(lambda connection: proposals.list_proposals(connection))
    return found


def _first(control: Any) -> Proposal:
    def look() -> Proposal | None:
        found = _filed(control)
        return found[0] if found else None

    found: Proposal = control.until(look)
    return found


def _finish(control: Any, proposal_id: str, succeeded: bool, outcome: dict[str, Any]) -> None:
    async def finish(connection: Connection) -> None:
        error = None if succeeded else "the sources are away"
        await proposals.finish(connection, proposal_id, succeeded=succeeded, outcome=outcome, error=error)

    control.ask(finish)


def test_a_proposal_is_filed_with_its_reason(control: Any) -> None:
    done = control.run("--json", "scan", "--no-wait", "--reason", "new models today")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    (filed,) = _filed(control)
    assert answer["id"] == filed.id
    assert (filed.tool, filed.reason, filed.proposer) == ("scan", "new models today", "user:admin")


@pytest.mark.parametrize(
    "arguments",
    [("scan",), ("rank", "story-teller"), ("rollback", "story-teller")],
)
def test_a_dry_run_files_nothing(control: Any, arguments: tuple[str, ...]) -> None:
    done = control.run(*arguments, "--dry-run")
    assert done.exit_code == 0, done.output
    assert arguments[0] in done.stdout
    assert json.loads(control.run("--json", *arguments, "--dry-run").stdout)["filed"] is False
    assert _filed(control) == []


@pytest.mark.parametrize(
    "verb", [("rank", "nobody"), ("rollback", "nobody", "--yes"), ("test", "nobody", "x")]
)
def test_an_unknown_use_case_is_refused_with_those_there_are(control: Any, verb: tuple[str, ...]) -> None:
    done = control.run(*verb)
    assert done.exit_code == 2
    assert "story-teller" in done.stderr
    assert _filed(control) == []


def test_an_untested_release_is_denied_with_the_rules_that_fired(control: Any) -> None:
    release = control.release("small")
    done = control.run("deploy", "story-teller", release, "--yes", "--no-wait")
    assert done.exit_code == 3, done.output
    assert "quality.status" in done.stdout
    assert "measured" in done.stdout
    assert "limit" in done.stdout


def test_an_unknown_release_is_refused_with_those_there_are(control: Any) -> None:
    release = control.release("small")
    done = control.run("deploy", "story-teller", "rel_nope", "--yes")
    assert done.exit_code == 2
    assert release in done.stderr


@pytest.mark.parametrize("verb", ["deploy", "rollback"])
def test_what_moves_traffic_is_not_done_unasked(control: Any, verb: str) -> None:
    rest = [control.release("small")] if verb == "deploy" else []
    done = control.run(verb, "story-teller", *rest)
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert _filed(control) == []


def test_what_needs_a_person_exits_with_4_and_says_how_to_approve(control: Any) -> None:
    done = control.run("rollback", "story-teller", "--yes", "--no-wait")
    assert done.exit_code == 4, done.output
    (filed,) = _filed(control)
    assert f"/approvals/{filed.id}" in done.stdout
    assert f"meta-agent approvals approve {filed.id}" in done.stdout


def test_following_ends_when_a_person_is_needed(control: Any) -> None:
    process = control.start("rollback", "story-teller", "--yes", "--timeout", "30")
    assert control.judge(_first(control).id) == ProposalStatus.WAITING
    out, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    assert "approvals approve" in out


def test_following_ends_when_policy_denies(control: Any) -> None:
    process = control.start("deploy", "story-teller", control.release("small"), "--yes", "--timeout", "30")
    assert control.judge(_first(control).id) == ProposalStatus.DENIED
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert "Policy denies" in err
    assert "quality.status" in out


@pytest.mark.parametrize(("succeeded", "code"), [(True, 0), (False, 1)])
def test_following_ends_with_the_run(control: Any, succeeded: bool, code: int) -> None:
    process = control.start("--json", "scan", "--timeout", "30")
    source = {"source": "lab", "offerings": 3, "new": 1, "changes": {}, "error": None}
    _finish(control, _first(control).id, succeeded, {"sources": [source]})
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    answer = json.loads(out)
    assert answer["status"] == ("succeeded" if succeeded else "failed")
    assert (answer["result"] is not None) is succeeded
    assert succeeded or "the sources are away" in err


def test_following_stops_when_told_to(control: Any) -> None:
    done = control.run("scan", "--timeout", "0.3")
    assert done.exit_code == 1
    assert "still proposed" in done.stderr


def test_interrupting_leaves_the_proposal_alone(control: Any) -> None:
    process = control.start("scan")
    filed = _first(control)
    process.stderr.readline()  # it follows now
    err = _interrupted(process)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"{filed.id} goes on without you" in err
    assert _filed(control)[0].status == ProposalStatus.PROPOSED


def _interrupted(process: Any) -> str:
    """What it says at its end. If nothing happens it is pressed again: the first may come too soon."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return str(process.communicate(timeout=6)[1])
    raise AssertionError("it goes on in spite of everything")


def _offer(control: Any, *names: tuple[str, str]) -> list[str]:
    async def insert(connection: Connection) -> list[str]:
        moment = datetime.now(UTC)
        for source in {source for source, _ in names}:
            await registry.record_attempt(
                connection, name=source, kind="openai_compatible", error=None, count=1
            )
        rows = [
            {
                "source": source,
                "external_id": model,
                "provider": source,
                "model": model,
                "reachable": True,
                "price_input": None,
                "price_output": None,
                "context_tokens": 8192,
                "output_tokens": None,
                "capabilities": [],
                "lifecycle": "active",
                "retires_at": None,
                "payload_digest": "d",
                "payload": {},
                "first_seen_at": moment,
                "last_seen_at": moment,
                "scans_missed": 0,
            }
            for source, model in names
        ]
        return await registry.insert_offerings(connection, rows)

    found: list[str] = control.ask(insert)
    return found


def test_an_offering_may_be_named(control: Any) -> None:
    lab, other = _offer(control, ("lab", "small"), ("other", "small"))
    for name, meant in (("lab/small", lab), ("other/small", other), (lab, lab)):
        done = control.run("--json", "test", "story-teller", name, "--dry-run")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["arguments"]["offering_id"] == meant
    done = control.run("test", "story-teller", "small", "--dry-run")
    assert done.exit_code == 2
    assert lab in done.stderr
    assert other in done.stderr
    assert control.run("test", "story-teller", "no-such", "--dry-run").exit_code == 2
    assert control.run("test", "story-teller", "off_no_such", "--dry-run").exit_code == 2


def test_a_ranking_is_shown_with_what_was_excluded(control: Any) -> None:
    (offering,) = _offer(control, ("lab", "small"))
    candidate = {
        "offering_id": offering,
        "provider": "lab",
        "model": "small",
        "saving_share": 0.8,
        "list": "worth_measuring",
        "why": "Costs less.",
    }

    async def save(connection: Connection) -> None:
        await registry.save_ranking(
            connection,
            ranking_id="rank_1",
            use_case="story-teller",
            stable_offering=None,
            profile={},
            candidates=[candidate],
            excluded={"counts": {"price_unknown": 7}, "examples": {}},
        )

    control.ask(save)
    process = control.start("rank", "story-teller", "--timeout", "30")
    _finish(control, _first(control).id, True, {"candidates": 1})
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "lab/small" in out
    assert "80%" in out
    assert "price unknown" in out


def test_an_evaluation_is_shown_with_the_next_step(control: Any) -> None:
    (offering,) = _offer(control, ("lab", "small"))
    release = control.release("small")
    process = control.start("test", "story-teller", "lab/small", "--timeout", "30")
    filed = _first(control)

    async def evaluate(connection: Connection) -> None:
        await evaluations.create(
            connection,
            evaluation_id="ev_1",
            use_case="story-teller",
            candidate_release_id=release,
            stable_release_id=release,
            offering_id=offering,
            proposal_id=filed.id,
            suite_digest="d",
        )
        await evaluations.finish(
            connection,
            "ev_1",
            status=EvaluationStatus.PASSED,
            summary={"similarity": 0.97, "safety": 1.0},
            reason="passed",
        )

    control.ask(evaluate)
    _finish(control, filed.id, True, {"evaluation_id": "ev_1"})
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "0.97" in out
    assert f"meta-agent deploy story-teller {release}" in err
