"""From a result row to a frozen dataclass with the same field names."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Table
from sqlalchemy.engine import Row

T = TypeVar("T")


def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(cls.__dataclass_fields__)


def columns_for(cls: type, table: Table) -> list[ColumnElement[Any]]:
    """The columns of a table that a dataclass asks for."""
    return [table.c[name] for name in _fields(cls)]


def load(cls: type[T], row: Row[Any]) -> T:
    """Build the dataclass from a row that holds at least its columns."""
    mapping = row._mapping
    return cls(**{name: mapping[name] for name in _fields(cls)})


def load_optional(cls: type[T], row: Row[Any] | None) -> T | None:
    """The same, for a row that may not be there."""
    return None if row is None else load(cls, row)
