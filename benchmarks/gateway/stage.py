"""What every measurement stands on: a directory, a database, a mock provider and a load generator."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.load import Generator
from benchmarks.gateway.postgres import Postgres
from benchmarks.gateway.processes import cores, stay_off_measured_core
from benchmarks.gateway.provider import running_provider


@dataclass(frozen=True)
class Stage:
    """All of that, running."""

    directory: Path
    upstream: int  #: the mock provider's port
    postgres: Postgres
    generator: Generator


@contextlib.contextmanager
def set_stage(database_url: str | None) -> Iterator[Stage]:
    """Everything up, and away afterwards."""
    from benchmarks.gateway import fleet

    stay_off_measured_core()
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ma-bench-", dir="/tmp", ignore_cleanup_errors=True)
            )
        )
        directory.chmod(0o755)  # PostgreSQL and nginx may run as users of their own
        postgres = stack.enter_context(Postgres(directory, database_url))
        fleet.declare(postgres.url)
        upstream = stack.enter_context(running_provider(directory, cores()[0]))
        yield Stage(directory, upstream, postgres, Generator(directory))
