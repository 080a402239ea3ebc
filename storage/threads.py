"""Where the agent's state machines keep their threads: a schema of their own.

Its tables belong to the checkpointer that writes them; nothing here knows their shape.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.engine import make_url

from storage.database import Database, conninfo

SCHEMA = "agent_threads"


def threads_conninfo(database: Database) -> str:
    """The database's address in libpq's form, with the schema as the only one on the search path."""
    url = make_url(database.url)
    given = url.query.get("options", "")
    before = " ".join(given) if isinstance(given, tuple) else given
    options = f"{before} -csearch_path={SCHEMA}".strip()
    return conninfo(url.update_query_dict({"options": options}).render_as_string(hide_password=False))


async def ensure_schema(database: Database) -> None:
    """Create the schema, if it is not there. The caller lets one process at a time do so."""
    async with database.transaction() as connection:
        await connection.execute(text(f"create schema if not exists {SCHEMA}"))
