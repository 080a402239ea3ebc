"""A use case's suite: the cases that every model behind it must be able to do.

Read from the use case's stored JSON, which is the YAML file as it was written. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from pipelines.evaluation.checks import Check, CheckError


class SuiteError(ValueError):
    """A suite that cannot be read; says which case and what is wrong."""


@dataclass(frozen=True)
class Case:
    """Messages to answer, and what the answer must fulfil."""

    id: str
    messages: tuple[dict[str, Any], ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Suite:
    """All cases, and the checks that hold for any answer of the use case."""

    cases: tuple[Case, ...] = ()
    recorded_checks: tuple[Check, ...] = ()  #: for replayed traffic, whose wishes nobody wrote down

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Suite:
        """Read a suite; none at all is an empty one."""
        if document is None:
            return cls()
        cases = tuple(_case(each, place) for place, each in enumerate(_list(document, "cases")))
        ids = [case.id for case in cases]
        doubled = next((each for each in ids if ids.count(each) > 1), None)
        if doubled is not None:
            raise SuiteError(f"two cases have the id {doubled!r}; ids are unique within a suite")
        return cls(cases, _checks(document.get("recorded_checks") or (), "recorded_checks"))


def _list(document: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = document.get(key, [])
    if not isinstance(value, list | tuple):
        raise SuiteError(f"{key} is a list")
    return value


def _case(document: object, place: int) -> Case:
    if not isinstance(document, Mapping) or not isinstance(document.get("id"), str) or not document["id"]:
        raise SuiteError(f"case number {place + 1} needs an id")
    name = f"case {document['id']}"
    messages = document.get("messages")
    if not are_messages(messages):
        raise SuiteError(f"{name}: messages is a list of objects with role and content")
    checks = _checks(document.get("checks") or (), name)
    if not checks:
        raise SuiteError(f"{name}: a case without checks cannot fail; give it at least one")
    return Case(document["id"], tuple(dict(each) for each in messages), checks)


def _checks(documents: object, where: str) -> tuple[Check, ...]:
    if not isinstance(documents, list | tuple):
        raise SuiteError(f"{where}: checks are a list")
    try:
        return tuple(Check.from_json(each) for each in documents)
    except CheckError as error:
        raise SuiteError(f"{where}: {error}") from error


def are_messages(value: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether a value is a chat that can be sent: at least one message, each with role and content."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(each, Mapping) and isinstance(each.get("role"), str) for each in value)
        and all("content" in each for each in value)
    )
