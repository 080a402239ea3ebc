"""From whatever the database holds to what this code needs.

Revisions are named ``NNNN_pre_…`` or ``NNNN_post_…``: before or after the processes of a zero-downtime
upgrade are replaced. A lock lets several processes start at once.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from storage.database import sqlalchemy_url

_LOCK = "select pg_advisory_lock(hashtextextended('meta-agent-migrations', 0))"
_UNLOCK = "select pg_advisory_unlock(hashtextextended('meta-agent-migrations', 0))"


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def migrate(url: str) -> None:
    """Bring a database to the newest revision; nothing happens if it is there."""
    engine = create_engine(sqlalchemy_url(url), poolclass=NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        connection.execute(text(_LOCK))
        connection.commit()
        try:
            command.upgrade(configuration(connection), "head")
            connection.commit()
        finally:
            connection.execute(text(_UNLOCK))
            connection.commit()
    engine.dispose()


def pending(url: str) -> list[str]:
    """Revisions that the database does not have yet, oldest first.

    None of a database that a newer version has migrated: this one keeps working beside it.
    """
    script = ScriptDirectory.from_config(configuration())
    engine = create_engine(sqlalchemy_url(url), poolclass=NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    if current is not None and current not in {each.revision for each in script.walk_revisions()}:
        return []
    return [each.revision for each in script.iterate_revisions("head", current)][::-1]
