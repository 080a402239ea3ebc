"""kill -9, and the run goes on after its last step: in the same worker started again, or in a peer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from pipelines.engine import Starter, prepare
from storage import audit, proposals
from storage.database import Database
from storage.proposals import Proposal
from storage.vocabulary import ProposalStatus

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def workers(db_url: str, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    prepare(db_url)
    started: list[subprocess.Popen[str]] = []

    def start(executor: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipelines.engine_worker", db_url, executor, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
async def database(db_url: str) -> AsyncIterator[Database]:
    database = Database(db_url)
    yield database
    await database.close()


async def enqueue(database: Database, url: str) -> str:
    starter = Starter(url)
    try:
        async with database.transaction() as connection:
            proposal_id = await proposals.create(
                connection,
                tool="scan",
                arguments={},
                use_case=None,
                proposer="test",
                reason="test",
                expires_in=timedelta(hours=1),
            )
            proposal = await proposals.find(connection, proposal_id)
            assert proposal is not None
            await starter.enqueue(connection, proposal)
            await proposals.update_proposal(
                connection, proposal_id, status=ProposalStatus.EXECUTING, run_id=proposal_id
            )
    finally:
        starter.close()
    return proposal_id


def notes(directory: Path) -> list[str]:
    path = directory / "notes"
    return path.read_text().splitlines() if path.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def ended(database: Database, proposal_id: str) -> Proposal:
    async with asyncio.timeout(30):
        while True:
            async with database.connection() as connection:
                proposal = await proposals.find(connection, proposal_id)
            if proposal and proposal.ended_at:
                return proposal
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("successor", ["a", "b"])
async def test_killed_in_a_step(
    database: Database,
    db_url: str,
    workers: Callable[[str], subprocess.Popen[str]],
    tmp_path: Path,
    successor: str,
) -> None:
    first = workers("a")
    proposal_id = await enqueue(database, db_url)
    await until(lambda: "gated a" in notes(tmp_path))
    first.kill()
    first.wait()
    workers(successor)
    await until(lambda: notes(tmp_path).count(f"gated {successor}") == (2 if successor == "a" else 1))
    (tmp_path / "go").touch()
    proposal = await ended(database, proposal_id)
    assert proposal.status == ProposalStatus.SUCCEEDED
    assert proposal.outcome == {"steps": ["first", "gated", "third"]}
    # The finished step ran once; the one in which the worker died ran again; the last one ran once.
    assert [line.split()[0] for line in notes(tmp_path)] == ["first", "gated", "gated", "third"]
    async with database.connection() as connection:
        finished = await audit.list_rows(connection, subject=proposal_id, event="action.finished")
    assert len(finished) == 1


async def test_a_run_that_the_engine_gave_up_does_not_leave_its_proposal_open(
    database: Database, db_url: str, workers: Callable[[str], subprocess.Popen[str]]
) -> None:
    proposal_id = await enqueue(database, db_url)
    async with database.transaction() as connection:
        await connection.execute(text("update dbos.workflow_status set status = 'CANCELLED'"))
    workers("a")
    proposal = await ended(database, proposal_id)
    assert proposal.status == ProposalStatus.FAILED
    assert "gave this run up" in (proposal.error or "")
    async with database.connection() as connection:
        assert len(await audit.list_rows(connection, subject=proposal_id, event="action.finished")) == 1


async def test_two_workers_cannot_share_an_id(
    workers: Callable[[str], subprocess.Popen[str]], db_url: str, tmp_path: Path
) -> None:
    workers("a")
    second = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.pipelines.engine_worker",
        db_url,
        "a",
        str(tmp_path),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert b"another worker is running as a" in errors


async def test_a_queue_that_rolls_back_starts_nothing(database: Database, db_url: str) -> None:
    prepare(db_url)
    starter = Starter(db_url)
    try:
        with contextlib.suppress(ZeroDivisionError):
            async with database.transaction() as connection:
                proposal_id = await proposals.create(
                    connection,
                    tool="scan",
                    arguments={},
                    use_case=None,
                    proposer="test",
                    reason="test",
                    expires_in=timedelta(hours=1),
                )
                proposal = await proposals.find(connection, proposal_id)
                assert proposal is not None
                await starter.enqueue(connection, proposal)
                raise ZeroDivisionError
        async with database.connection() as connection:
            assert await proposals.find(connection, proposal_id) is None
            rows = await connection.execute(text("select count(*) from dbos.workflow_status"))
            assert rows.scalar_one() == 0
    finally:
        starter.close()
