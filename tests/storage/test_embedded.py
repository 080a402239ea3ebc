"""The embedded server: shared while anybody uses it, stopped by the last, found again after a kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from storage.embedded import EmbeddedServerError, embedded_server

HOLDER = """
import sys
from pathlib import Path
from storage.embedded import embedded_server
with embedded_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """One cluster for all tests here: making one costs seconds."""
    with tempfile.TemporaryDirectory(prefix="ma-", dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name) / "pg"


def answers(url: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2) as connection:
        return connection.execute("select 1").fetchone() == (1,)
    return False


@contextlib.contextmanager
def holder(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    argv = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_the_last_user_stops_it_and_the_next_starts_it_again(directory: Path) -> None:
    with holder(directory) as (process, url):
        assert answers(url)
        with embedded_server(directory) as shared:
            assert shared == url
            process.communicate("done\n", timeout=20)
            assert process.returncode == 0
            assert answers(url), "another user is left"
    assert not answers(url)
    with embedded_server(directory) as again:
        assert answers(again)
    assert not answers(again)


def test_a_server_left_behind_by_kill_9_is_taken_over_and_stopped(directory: Path) -> None:
    with holder(directory) as (process, url):
        process.kill()
        process.wait(10)
        assert answers(url), "the server itself outlives its starter"
        with embedded_server(directory) as again:
            assert again == url
        assert not answers(url)


def test_a_process_that_was_given_the_dead_servers_number_is_not_taken_for_it(directory: Path) -> None:
    with holder(directory) as (process, url):
        server = int((directory / "postmaster.pid").read_text().split()[0])
        process.kill()
        process.wait(10)
    os.kill(server, signal.SIGKILL)
    until = time.monotonic() + 10
    while answers(url) and time.monotonic() < until:
        pass
    note = (directory / "postmaster.pid").read_text()
    (directory / "postmaster.pid").write_text(note.replace(str(server), str(os.getpid()), 1))
    (directory / ".handle_pids.json").write_text(json.dumps([1, os.getppid()]))
    with embedded_server(directory) as again:
        assert answers(again)
    assert not answers(again)


def test_only_its_user_reaches_the_socket(directory: Path) -> None:
    with embedded_server(directory) as url:
        socket_file = Path(url.partition("host=")[2]) / ".s.PGSQL.5432"
        assert socket_file.stat().st_mode & 0o077 == 0


def test_a_path_too_long_for_a_socket_works(directory: Path) -> None:
    long = directory.parent / ("a" * 60) / ("b" * 60)
    with embedded_server(long / "pg") as url:
        assert answers(url)
        assert str(long) not in url


def test_what_cannot_work_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(
        EmbeddedServerError, match=r"pg cannot be started: .*Not a directory.*DATABASE__URL"
    )
    with refused, embedded_server(tmp_path / "file" / "pg"):
        pass
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg" / "PG_VERSION").write_text("11\n")
    with (
        pytest.raises(EmbeddedServerError, match="expecting version 18 but found version 11"),
        embedded_server(tmp_path / "pg"),
    ):
        pass
