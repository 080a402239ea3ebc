"""The tables, one file per aggregate; importing this package fills :data:`metadata`."""

from sqlalchemy import DDL, event

from storage import rails
from storage.tables import catalogue, evidence, fleet, governance, identity, traffic
from storage.tables.metadata import metadata

for _statement in rails.statements():
    _rail = DDL(_statement.replace("%", "%%"))  # type: ignore[no-untyped-call]  # untyped in SQLAlchemy
    event.listen(metadata, "after_create", _rail)

__all__ = ["catalogue", "evidence", "fleet", "governance", "identity", "metadata", "traffic"]
