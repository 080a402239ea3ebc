"""The database of a benchmark: an embedded server that can be taken away and brought back, or a given one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import TracebackType

from benchmarks.gateway.processes import cpu_us

_STOP_SECONDS = 30.0


class Postgres:
    """One migrated database, and the server under it if that is ours."""

    def __init__(self, directory: Path, given: str | None) -> None:
        self._data = directory / "pg"
        self._server = contextlib.ExitStack()
        self.is_ours = given is None
        self.url = given or ""

    def __enter__(self) -> Postgres:
        from storage.migrate import migrate

        try:
            self.start()
            migrate(self.url)
        except BaseException:
            self._server.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def start(self) -> None:
        """Have the server; it recovers from its log if it was killed."""
        from storage.embedded import embedded_server

        if self.is_ours:
            self.url = self._server.enter_context(embedded_server(self._data))

    def kill(self) -> None:
        """Take the server away at once, as ``pg_ctl stop -m immediate`` does."""
        pid = self.pid
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + _STOP_SECONDS
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._server.close()

    @property
    def pid(self) -> int:
        """Of our server."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def cpu_us(self) -> float:
        """CPU of our server so far; 0 for one that is not ours."""
        return sum(cpu_us(self.pid).values()) if self.is_ours else 0.0

    def ask(self, query: str) -> tuple[int, ...]:
        """One row of numbers."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        return tuple(int(value or 0) for value in row or ())
