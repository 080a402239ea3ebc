"""The rules of serving as they are declared: JSON in which releases go by their ids.

Knows no database. What is wrong is refused when somebody declares it; what is found wrong in the database
(written by hand, or by a newer version) must not stop a gateway: it is replaced by the default.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

import msgspec

from storage.routing import DeploymentSpec, Fallback, Limits, Serving, ShadowBudget, Waiting
from storage.vocabulary import Capture

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeclaredServing:
    """The rules by which one use case is served, before its releases are looked up."""

    limits: Limits = field(default_factory=Limits)
    waiting: Waiting = field(default_factory=Waiting)
    capture: Capture = Capture.FULL
    shadow: ShadowBudget = field(default_factory=ShadowBudget)
    fallbacks: tuple[str, ...] = ()  #: ids of releases, asked in this order
    downgrade: str | None = None  #: the id of a release
    retention_days: int | None = None  #: what is older is removed; no affair of gateways

    @property
    def releases(self) -> tuple[str, ...]:
        """The releases that it names."""
        return self.fallbacks if self.downgrade is None else (*self.fallbacks, self.downgrade)

    def resolve(self, deployments: Mapping[str, DeploymentSpec]) -> Serving:
        """The same with the deployments of its releases; those that there are not are left out."""
        found = {each: Fallback(each, deployments[each]) for each in self.releases if each in deployments}
        return Serving(
            limits=self.limits,
            waiting=self.waiting,
            capture=self.capture,
            shadow=self.shadow,
            fallbacks=tuple(found[each] for each in self.fallbacks if each in found),
            downgrade=found.get(self.downgrade or ""),
        )


_TYPES = {
    "limits": Limits,
    "waiting": Waiting,
    "capture": Capture,
    "shadow": ShadowBudget,
    "fallbacks": tuple[str, ...],
    "downgrade": str | None,
    "retention_days": int | None,
}
#: Who wanted to keep less than everything must not find everything kept because of a word nobody knows.
_UNREADABLE_CAPTURE = Capture.METADATA


def checked_serving(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it is stored. Raises ValueError for what cannot be read or means nothing."""
    return _checked(document, DeclaredServing, "serving")


def checked_limits(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the limits of a key."""
    return _checked(document, Limits, "limits")


def _checked(document: Mapping[str, Any], kind: Any, path: str) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = msgspec.to_builtins(dict(document))
        read = asdict(msgspec.convert(plain, kind))
    except (msgspec.ValidationError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    _check(plain, read, path)
    return plain


def _check(given: Mapping[str, Any], read: Mapping[str, Any], path: str) -> None:
    for name, value in given.items():
        if name not in read:
            raise ValueError(f"{path} has no {name!r}; there are {', '.join(read)}")
        if isinstance(value, Mapping):
            _check(value, read[name], f"{path}.{name}")
        elif isinstance(read[name], int | float | Decimal) and not 0 <= float(read[name]) < math.inf:
            raise ValueError(f"{path}.{name} must be a number from 0 on, not {value}")


def read_serving(use_case: str, document: Any) -> DeclaredServing:
    """What is stored for a use case; what of it cannot be read is replaced by its default."""
    try:
        return msgspec.convert(document, DeclaredServing)
    except msgspec.ValidationError:
        return _read_by_parts(use_case, document)


def _read_by_parts(use_case: str, document: Any) -> DeclaredServing:
    if not isinstance(document, dict):
        document = dict.fromkeys(_TYPES, document)
    parts: dict[str, Any] = {"capture": _UNREADABLE_CAPTURE} if "capture" in document else {}
    for name, kind in _TYPES.items():
        try:
            if name in document:
                parts[name] = msgspec.convert(document[name], kind)
        except msgspec.ValidationError as error:
            _complain(f"the {name} of use case {use_case}", str(error))
    return DeclaredServing(**parts)


def read_limits(key_id: str, document: Any) -> Limits:
    """What is stored for a key, or no limits if that cannot be read."""
    try:
        return msgspec.convert(document, Limits)
    except msgspec.ValidationError as error:
        _complain(f"the limits of key {key_id}", str(error))
        return Limits()


@functools.lru_cache(maxsize=1024)
def _complain(what: str, why: str) -> None:
    """Once for each trouble: gateways read every second."""
    _log.error("%s cannot be read and are taken as not set: %s", what, why)
