"""A migrated database and one made from the metadata are the same."""

from __future__ import annotations

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from storage.database import sqlalchemy_url
from storage.migrate import migrate, pending
from storage.tables import metadata

TRIGGERS = """
select tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
from pg_trigger where not tgisinternal order by 1, 2
"""
FUNCTIONS = "select proname, prosrc from pg_proc where proname like 'meta_agent%' order by 1"


def _rails(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return [tuple(row) for query in (TRIGGERS, FUNCTIONS) for row in connection.execute(query)]


def test_migrations_lead_to_the_metadata(db_url: str) -> None:
    engine = create_engine(sqlalchemy_url(db_url), poolclass=NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_rails_are_the_same_by_migration_and_by_metadata(db_url: str) -> None:
    migrated = _rails(db_url)
    engine = create_engine(sqlalchemy_url(db_url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("drop schema public cascade; create schema public"))
        metadata.create_all(connection)
    engine.dispose()
    created = _rails(db_url)
    assert [row[:2] for row in migrated] == [row[:2] for row in created]
    assert [str(row).split() for row in migrated] == [str(row).split() for row in created]


def test_migrating_twice_changes_nothing(db_url: str) -> None:
    assert pending(db_url) == []
    migrate(db_url)
    assert pending(db_url) == []
