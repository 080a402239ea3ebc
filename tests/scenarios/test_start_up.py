"""Starting and stopping an installation: `meta-agent up` as an operator meets it, and its processes alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from storage.testing import create_clone, drop
from tests.scenarios.installation import free_ports

SECRET = "s3cret-pass-0123456789"  # a database password that nothing may print
UP_SECONDS = 60.0


class Site:
    """`up` without the demo: the three processes, on ports and in a home of their own."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.home = home
        self.ports = free_ports(2)
        self.config = home.with_name(f"{home.name}.yaml")
        self.output = home.with_name(f"{home.name}.out")
        self.config.write_text(
            yaml.safe_dump({"gateway": {"port": self.ports[0]}, "control": {"port": self.ports[1]}})
        )
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("META_AGENT")}
        self.environ |= {"META_AGENT_HOME": str(home), "META_AGENT_CONFIG": str(self.config), **environ}

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "meta_agent.cli", *(command or ("up",))],
                env=self.environ,
                stdout=output,
                stderr=output,
            )

    def run(self, *command: str, **environ: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "meta_agent.cli", *command],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def printed(self) -> str:
        return self.output.read_text()

    def until_up(self, process: subprocess.Popen[bytes]) -> None:
        until(lambda: "Ctrl-C stops everything" in self.printed() or process.poll() is not None, UP_SECONDS)
        assert process.poll() is None, self.everything_said()

    def everything_said(self) -> str:
        logs = sorted((self.home / "logs").glob("*.log"))
        return "\n".join(each.read_text(errors="replace") for each in [self.output, *logs])

    def processes(self) -> list[int]:
        """Everything alive that belongs to this home, by environment or, for PostgreSQL, directory."""
        marks = (f"META_AGENT_HOME={self.home}".encode(), str(self.home / "postgres").encode())
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                said = (each / "environ").read_bytes() + (each / "cmdline").read_bytes()
                if any(mark in said for mark in marks):
                    found.append(int(each.name))
        return found


def until(look: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.05)


def is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


@contextlib.contextmanager
def ended_after(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A failed test must not leave servers behind."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(25)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: sockets live below."""
    with tempfile.TemporaryDirectory(prefix="ma-", dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def site(place: Path) -> Site:
    return Site(place / "home")


def assert_all_gone(site: Site) -> None:
    assert site.processes() == []
    assert all(is_free(port) for port in site.ports)


def test_ctrl_c_during_the_start_leaves_nothing(site: Site) -> None:
    with ended_after(site.start()) as process:
        until(lambda: (site.home / "postgres" / "postmaster.pid").exists(), UP_SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, site.everything_said()
    assert_all_gone(site)


def test_killed_and_started_again_then_stopped(site: Site) -> None:
    with ended_after(site.start()) as killed:
        site.until_up(killed)
        before = set(site.processes())

        code, said = site.run("up")
        assert (code, said) == (
            1,
            f"{site.home} is in use by `meta-agent up` with process id {killed.pid}; stop it, or set "
            "META_AGENT_HOME to another directory\n",
        )
        code, said = site.run("up", META_AGENT_HOME=f"{site.home}-other")
        assert code == 1
        assert said.startswith(f"port {site.ports[0]} on 127.0.0.1, for the gateway, cannot be used: Address")
        assert said.rstrip().endswith("choose another by META_AGENT__GATEWAY__PORT")

        killed.kill()
        killed.wait(10)
    with ended_after(site.start()) as again:
        site.until_up(again)
        # PostgreSQL alone was taken over; everything else is new.
        assert all(is_postgres(pid) for pid in before & set(site.processes()))
        assert answers(f"http://127.0.0.1:{site.ports[1]}/healthz/ready")
        modes = {each.stat().st_mode & 0o777 for each in (site.home / "keys").iterdir()}
        assert modes == {0o600}
        again.send_signal(signal.SIGINT)
        assert again.wait(20) == 0, site.everything_said()
    assert_all_gone(site)
    assert "Traceback" not in site.printed()


def is_postgres(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "postgres" in Path(f"/proc/{pid}/comm").read_text()
    return True  # gone by now


def test_a_gateway_starts_from_its_last_good_routes_without_a_database(place: Path, db_url: str) -> None:
    site = Site(place / "alone")
    for url in (db_url, f"postgresql://u:{SECRET}@127.0.0.1:9/gone"):
        site.environ["META_AGENT__DATABASE__URL"] = url
        with ended_after(site.start("gateway")) as process:
            until(lambda: answers(f"http://127.0.0.1:{site.ports[0]}/healthz/ready"))
            process.terminate()
            # The server ends by the signal itself once it has drained.
            assert process.wait(20) in (0, -signal.SIGTERM)
    assert SECRET not in site.everything_said()


@pytest.mark.parametrize("command", ["control", "worker", "migrate"])
def test_a_database_that_is_away_is_a_sentence(place: Path, command: str) -> None:
    site = Site(place / "away", META_AGENT__DATABASE__URL=f"postgresql://u:{SECRET}@127.0.0.1:9/gone")
    code, said = site.run(command)
    assert (code, SECRET in said, "Traceback" in said) == (5, False, False), said
    assert said.splitlines()[-1].startswith("the database cannot be used: ")


def test_an_existing_server_is_used_and_left_running(place: Path, server_url: str) -> None:
    url = create_clone(server_url)
    site = Site(place / "with-server", META_AGENT__DATABASE__URL=url.replace(":@/", f":{SECRET}@/"))
    assert SECRET in site.environ["META_AGENT__DATABASE__URL"]
    with ended_after(site.start()) as process:
        site.until_up(process)
        process.terminate()
        assert process.wait(20) == 0, site.everything_said()
    assert_all_gone(site)
    assert not (site.home / "postgres").exists()
    assert SECRET not in site.everything_said()
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from users").fetchone() == (1,)
    drop(server_url, url)


def test_a_process_that_cannot_start_ends_up_with_its_words(place: Path, server_url: str) -> None:
    url = create_clone(server_url)
    site = Site(place / "broken", META_AGENT__DATABASE__URL=url)
    (site.home / "gateway").mkdir(parents=True)
    (site.home / "gateway" / "lock").mkdir()  # what the gateway opens as a file
    with ended_after(site.start()) as process:
        assert process.wait(60) == 1
    assert "gateway ended at once with " in site.printed()
    assert f"(all of it: {site.home}/logs/gateway.log)" in site.printed()
    assert_all_gone(site)
    drop(server_url, url)


@pytest.mark.parametrize("command", ["gateway", "control", "worker"])
def test_processes_without_a_database_url_say_so(place: Path, command: str) -> None:
    code, said = Site(place / "none").run(command)
    assert code == 2
    assert said.startswith(
        "there is no database URL: set META_AGENT__DATABASE__URL (or database.url), or run"
    )


@pytest.mark.parametrize("command", ["control", "worker"])
def test_a_database_without_tables_is_refused(place: Path, server_url: str, command: str) -> None:
    url = create_clone(server_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table alembic_version")
    code, said = Site(place / "empty", META_AGENT__DATABASE__URL=url).run(command)
    assert (code, said) == (1, "the database lacks 0001_pre, 0002_pre: run `meta-agent migrate` first\n")
    drop(server_url, url)


def test_a_worker_id_is_used_once(place: Path, db_url: str) -> None:
    site = Site(place / "second", META_AGENT__DATABASE__URL=db_url, META_AGENT__WORKER__ID="night")
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(hashtextextended('dbos-executor:night', 0))")
        code, said = site.run("worker")
    assert (code, said) == (
        1,
        "another worker is running as night on this database; give this one another id by "
        "META_AGENT__WORKER__ID\n",
    )


def test_bad_files_stop_the_start_with_their_place(place: Path) -> None:
    site = Site(place / "bad-policy")
    rules = place / "rules.yaml"
    rules.write_text("version: 0\n")
    code, said = site.run("up", META_AGENT__POLICIES=str(rules))
    assert code == 2
    assert f"{rules}: version: Input should be greater than or equal to 1" in said.splitlines()
    code, said = site.run(
        "up", META_AGENT_HOME=f"{site.home}-twice", META_AGENT__CONTROL__PORT=str(site.ports[0])
    )
    assert code == 1
    assert "is meant for the gateway and for the control plane; choose another by META_AGENT__CON" in said
    site.config.write_text("gatway: {}\n")
    assert site.run("up")[0] == 2
    assert not site.home.exists(), "nothing was started or written"
