"""Checks on one answer: each holds or does not, by the text alone.

Pure. A suite's author is trusted, the text is not: what is matched is capped, and a pattern that could
take forever on some text is refused when the suite is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Published without type information.
import jsonschema  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable

from storage.digests import canonical

#: How much of an answer is looked at, and how long a pattern may be.
LONGEST_TEXT, LONGEST_PATTERN = 20_000, 500

_LONGEST_WORDS = 200

_TEXT_CHECKS = frozenset({"contains", "not_contains", "ends_with"})
_PATTERN_CHECKS = frozenset({"regex", "not_regex"})
_COUNT_CHECKS = frozenset({"min_words", "max_words"})
KINDS = tuple(sorted(_TEXT_CHECKS | _PATTERN_CHECKS | _COUNT_CHECKS | {"json_schema"}))
#: A repeated group that repeats inside itself, such as ``(a+)+``: exponential on text that does not match.
_NESTED_REPEAT = re.compile(r"\([^()]*[*+}][^()]*\)\s*[*+{]")


class CheckError(ValueError):
    """A check that cannot be read; says which and how it is written."""


@dataclass(frozen=True)
class Check:
    """One thing that an answer must fulfil."""

    kind: str
    wanted: Any

    @classmethod
    def from_json(cls, document: object) -> Check:
        """Read ``{kind: wanted}``.

        >>> Check.from_json({"min_words": 40})
        Check(kind='min_words', wanted=40)
        """
        if not isinstance(document, Mapping) or len(document) != 1:
            raise CheckError(f"a check is one pair such as {{contains: word}}, not {document!r}")
        [(kind, wanted)] = document.items()
        problem = _problem(str(kind), wanted)
        if problem:
            raise CheckError(f"check {kind}: {problem}")
        return cls(str(kind), wanted)

    def to_json(self) -> dict[str, Any]:
        """As it was written."""
        return {self.kind: self.wanted}

    def holds(self, text: str) -> bool:
        """Whether an answer fulfils it."""
        text = text[:LONGEST_TEXT]
        match self.kind:
            case "contains":
                return bool(self.wanted in text)
            case "not_contains":
                return bool(self.wanted not in text)
            case "ends_with":
                return text.rstrip().endswith(self.wanted)
            case "regex":
                return re.search(self.wanted, text) is not None
            case "not_regex":
                return re.search(self.wanted, text) is None
            case "min_words":
                return bool(len(text.split()) >= self.wanted)
            case "max_words":
                return bool(len(text.split()) <= self.wanted)
            case _:
                return _fits_schema(self.wanted, text)

    def __str__(self) -> str:
        wanted = self.wanted if isinstance(self.wanted, str | int) else canonical(self.wanted)
        return f"{self.kind}: {str(wanted)[:_LONGEST_WORDS]}"


def failed_checks(checks: Iterable[Check], text: str) -> list[Check]:
    """Those that an answer does not fulfil."""
    return [check for check in checks if not check.holds(text)]


def _problem(kind: str, wanted: object) -> str | None:
    if kind in _TEXT_CHECKS:
        return None if isinstance(wanted, str) and wanted else "a piece of text is needed"
    if kind in _COUNT_CHECKS:
        counts = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 0
        return None if counts else "a whole number of words is needed"
    if kind in _PATTERN_CHECKS:
        return _pattern_problem(wanted)
    if kind == "json_schema":
        return _schema_problem(wanted)
    return f"there is no such kind; known: {', '.join(KINDS)}"


def _pattern_problem(pattern: object) -> str | None:
    if not isinstance(pattern, str) or not 0 < len(pattern) <= LONGEST_PATTERN:
        return f"a pattern of at most {LONGEST_PATTERN} characters is needed"
    if _NESTED_REPEAT.search(pattern):
        return "a repeated group with a repetition inside can take forever; write it without"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"the pattern cannot be read: {error}"
    return None


def _schema_problem(schema: object) -> str | None:
    if not isinstance(schema, Mapping):
        return "a JSON Schema is an object"
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"this is no JSON Schema: {error.message}"
    return next(_schema_problems(schema), None)


def _schema_problems(schema: Any) -> Iterator[str]:
    """What the meta-schema lets through and a run must not meet."""
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from _schema_problems(each)
    if not isinstance(schema, Mapping):
        return
    reference, pattern = schema.get("$ref"), schema.get("pattern")
    if isinstance(reference, str) and not reference.startswith("#"):
        yield f"the reference {reference} leads outside the schema; nothing is fetched"
    if isinstance(pattern, str) and (problem := _pattern_problem(pattern)):
        yield problem
    for each in schema.values():
        yield from _schema_problems(each)


def _fits_schema(schema: Mapping[str, Any], text: str) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    # An empty registry: a reference in a schema must never fetch anything.
    validator = jsonschema.Draft202012Validator(schema, registry=Registry())
    try:
        return bool(validator.is_valid(document))
    except Unresolvable:  # a reference into the schema that leads nowhere describes nothing
        return False
