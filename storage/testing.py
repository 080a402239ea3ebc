"""Shipped for tests: a fresh, migrated database in a moment, by cloning a template."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import psycopg

from storage import ids
from storage.database import Database
from storage.migrate import migrate

TEMPLATE = "meta_agent_template"


def _with_database(server_url: str, name: str) -> str:
    base, _, query = server_url.partition("?")
    return base.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")


def prepare_template(server_url: str) -> None:
    """Create and migrate the database that :func:`fresh_database` clones."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"drop database if exists {TEMPLATE}")
        connection.execute(f"create database {TEMPLATE}")
    migrate(_with_database(server_url, TEMPLATE))


def create_clone(server_url: str) -> str:
    """The URL of a new database like the template."""
    name = ids.new_id("test")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {TEMPLATE}")
    return _with_database(server_url, name)


def drop(server_url: str, url: str) -> None:
    """Remove a clone, whoever is still connected."""
    name = url.partition("?")[0].rsplit("/", 1)[1]
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")


@contextlib.asynccontextmanager
async def fresh_database(server_url: str) -> AsyncIterator[Database]:
    """A database of its own for one test."""
    url = create_clone(server_url)
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()
        drop(server_url, url)
