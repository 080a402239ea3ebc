"""Looks at single fields of a Responses request: the right type, or an error that names the field.

Knows JSON's types and no field by name.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ApiError

_NAME_LIMIT = 100
_WORDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def wrong(param: str, words: str) -> ApiError:
    """A field holds what it cannot hold."""
    return ApiError(400, f"'{param}' must be {words}.", code="invalid_type", param=param)


def missing(param: str, words: str) -> ApiError:
    """A field that a request cannot do without."""
    return ApiError(400, f"'{param}' is missing: {words}.", code="missing_field", param=param)


def unsupported(param: str, text: str) -> ApiError:
    """Something that OpenAI's own servers do and this gateway does not; ``text`` says what to do instead."""
    return ApiError(400, text, code="unsupported_parameter", param=param)


def quoted(value: object) -> str:
    """A caller's word for a message, cut where it becomes long."""
    text = value if isinstance(value, str) else type(value).__name__
    return f"'{text[:_NAME_LIMIT]}'"


def checked(value: Any, kind: type, param: str) -> Any:
    """The value if it is of that kind. A whole number is a number too; true and false are none."""
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise wrong(param, _WORDS[kind])
    return value


def optional(source: dict[str, Any], name: str, kind: type, param: str | None = None) -> Any:
    """The field, or None where it is absent or null."""
    value = source.get(name)
    return None if value is None else checked(value, kind, param or name)


def needed(source: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """A field of the object at ``where`` that must be there."""
    param = f"{where}.{name}"
    value = source.get(name)
    if value is None:
        raise missing(param, f"send {_WORDS[kind]}")
    return checked(value, kind, param)


def objects(values: list[Any], param: str) -> list[tuple[str, dict[str, Any]]]:
    """Every member of a list of objects, with the words that name it."""
    named = [(f"{param}[{place}]", value) for place, value in enumerate(values)]
    for where, value in named:
        checked(value, dict, where)
    return named


def without(source: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """What is left of an object when the known fields are taken out: unknown ones travel on."""
    return {name: value for name, value in source.items() if name not in names}


def present(**fields: Any) -> dict[str, Any]:
    """An object of the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
