"""A migrated database and one made from the metadata are the same."""

from __future__ import annotations

import psycopg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from storage.database import sqlalchemy_url
from storage.migrate import configuration, migrate, pending
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


def test_new_columns_rewrite_no_table_that_grows(db_url: str) -> None:
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    engine = create_engine(sqlalchemy_url(db_url), poolclass=NullPool)
    with engine.connect() as connection:
        command.upgrade(configuration(connection), "0001_pre")
        connection.execute(
            text(
                "insert into interactions (id, at, kind, use_case, status)"
                " values ('int_1', now(), 'live', 'story', 'ok')"
            )
        )
        connection.commit()
    engine.dispose()
    before = _files(db_url)
    migrate(db_url)
    assert _files(db_url) == before
    with psycopg.connect(db_url) as connection:
        assert connection.execute("select id, control from interactions").fetchall() == [("int_1", None)]


def _files(url: str) -> list[tuple[object, ...]]:
    """Where the tables lie that existed before: a table that is rewritten lies somewhere else."""
    names = "'interactions', 'feedback', 'releases', 'use_cases', 'api_keys', 'evaluation_cases'"
    query = f"select relname, pg_relation_filenode(oid) from pg_class where relname in ({names}) order by 1"
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()
