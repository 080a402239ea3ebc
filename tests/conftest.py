"""What every test may ask for: a PostgreSQL server, and a fresh migrated database in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storage.database import Database
from storage.embedded import embedded_server
from storage.testing import create_clone, drop, fresh_database, prepare_template


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A PostgreSQL server: META_AGENT_TEST_DATABASE_URL, else an embedded one in a short-named directory."""
    given = os.environ.get("META_AGENT_TEST_DATABASE_URL")
    if given:
        prepare_template(given)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="ma-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        with embedded_server(Path(directory) / "pg") as url:
            prepare_template(url)
            yield url


@pytest.fixture
async def db(server_url: str) -> AsyncIterator[Database]:
    """A database of its own."""
    async with fresh_database(server_url) as database:
        yield database


@pytest.fixture
def db_url(server_url: str) -> Iterator[str]:
    """The URL of a database of its own, for processes that connect by themselves."""
    url = create_clone(server_url)
    yield url
    drop(server_url, url)
