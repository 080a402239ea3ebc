"""What every table shares: the metadata with its naming convention, and the usual columns."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, MetaData, Numeric, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def identifier() -> Column[str]:
    """A primary key of ``storage.ids.new_id``."""
    return Column("id", Text, primary_key=True)


def moment(name: str, **options: Any) -> Column[Any]:
    """A point in time, in UTC; required unless said otherwise."""
    return Column(name, DateTime(timezone=True), **{"nullable": False, **options})


def words(name: str, **options: Any) -> Column[str]:
    """Text; required unless said otherwise."""
    return Column(name, Text, **{"nullable": False, **options})


def document(name: str, **options: Any) -> Column[Any]:
    """JSON; required unless said otherwise."""
    return Column(name, JSONB(none_as_null=True), **{"nullable": False, **options})


def dollars(name: str, **options: Any) -> Column[Any]:
    """An exact amount of US dollars."""
    return Column(name, Numeric(20, 12), **{"nullable": False, **options})


def counter(name: str, **options: Any) -> Column[int]:
    """A 64-bit whole number; required unless said otherwise."""
    return Column(name, BigInteger, **{"nullable": False, **options})
