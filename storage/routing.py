"""What a gateway serves by: routes, releases, keys and the rules of each use case, as plain values.

Knows no database: ``storage.routes`` reads them from there, a gateway gets them as bytes. One version of
everything is a snapshot; what changed between two of them is a delta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from storage.vocabulary import Arm, AssignmentUnit, Capture, OverBudget

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What a gateway must know to call a deployment."""

    id: str
    provider: str
    model: str
    parameters: dict[str, Any]
    system_prompt: str | None
    guard_profile: str
    price_input: Decimal  #: USD per token
    price_output: Decimal


@dataclass(frozen=True, slots=True)
class RouteArm:
    """One arm. The candidate's weight is its share of units, the shadow's the share of requests mirrored."""

    arm: Arm
    release_id: str
    deployment: DeploymentSpec
    weight: float


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers for a use case, in one revision."""

    use_case: str
    revision: int
    salt: str
    rollout_id: str | None
    assignment_unit: AssignmentUnit
    arms: tuple[RouteArm, ...]

    def find(self, arm: Arm) -> RouteArm | None:
        """The arm of that name, if the route has it."""
        for each in self.arms:
            if each.arm is arm:
                return each
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key or a use case may take; None: as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  #: prompt and completion together
    concurrent: int | None = None  #: requests under way at once, in each gateway process
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None
    over_budget: OverBudget = OverBudget.BLOCK
    max_body_bytes: int | None = None
    max_tokens: int | None = None  #: of one answer; a request for more is lowered to it


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long a caller is kept waiting, and what is tried meanwhile. None: the gateway's own default."""

    first_token_seconds: float | None = None  #: from the request to the first piece of a stream
    idle_seconds: float | None = None  #: between two pieces
    total_seconds: float | None = None  #: for the whole answer, streamed or not
    retries: int = 1  #: further attempts at the same deployment, where asking twice is safe
    hedge_after_seconds: float | None = None  #: ask a fallback too when nothing came by then; None: never


@dataclass(frozen=True, slots=True)
class ShadowBudget:
    """What mirroring a use case to a shadow may take."""

    usd_per_day: Decimal | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Fallback:
    """A release that answers when the one that was drawn cannot."""

    release_id: str
    deployment: DeploymentSpec


@dataclass(frozen=True, slots=True)
class Serving:
    """The rules by which one use case is served. They change without a new route revision."""

    limits: Limits = Limits()
    waiting: Waiting = Waiting()
    capture: Capture = Capture.FULL
    shadow: ShadowBudget = ShadowBudget()
    fallbacks: tuple[Fallback, ...] = ()  #: asked in this order
    downgrade: Fallback | None = None  #: who answers once the budget is spent, if it says downgrade


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a gateway must know of an application's key: a digest, never the secret."""

    id: str
    name: str
    secret_sha256: str
    scopes: frozenset[str]
    use_cases: frozenset[str] | None
    expires_at: datetime | None = None
    previous_sha256: str | None = None  #: of the secret before a rotation, valid for a while longer
    previous_until: datetime | None = None
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class PinnableRelease:
    """A release that may be asked for by name."""

    use_case: str
    deployment: DeploymentSpec


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """Everything a gateway needs to serve on its own, at one version."""

    version: int = 0
    routes: Mapping[str, Route] = field(default_factory=dict)  #: by use case
    servings: Mapping[str, Serving] = field(default_factory=dict)  #: by use case; absent: all defaults
    releases: Mapping[str, PinnableRelease] = field(default_factory=dict)
    keys: Mapping[str, KeyRecord] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON that :meth:`decode` reads back."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> RoutingSnapshot:
        """The inverse of :meth:`encode`. Raises ``msgspec.DecodeError`` on anything else."""
        return _SNAPSHOT.decode(data)


@dataclass(frozen=True, slots=True)
class RoutingDelta:
    """What changed from one snapshot to the next: new values by name, and the names that went."""

    version: int
    routes: Mapping[str, Route | None] = field(default_factory=dict)  #: None: gone, here and below
    servings: Mapping[str, Serving | None] = field(default_factory=dict)
    releases: Mapping[str, PinnableRelease | None] = field(default_factory=dict)
    keys: Mapping[str, KeyRecord | None] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON that :meth:`decode` reads back."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> RoutingDelta:
        """The inverse of :meth:`encode`. Raises ``msgspec.DecodeError`` on anything else."""
        return _DELTA.decode(data)

    @property
    def is_empty(self) -> bool:
        """Whether nothing but perhaps the version has changed."""
        return not (self.routes or self.servings or self.releases or self.keys)


_SNAPSHOT = msgspec.json.Decoder(RoutingSnapshot)
_DELTA = msgspec.json.Decoder(RoutingDelta)


def difference(old: RoutingSnapshot, new: RoutingSnapshot) -> RoutingDelta:
    """What leads from one snapshot to another: ``applied(old, difference(old, new)) == new``."""
    changed = {name: _difference(getattr(old, name), getattr(new, name)) for name in _MAPPINGS}
    return RoutingDelta(version=new.version, **changed)


def applied(snapshot: RoutingSnapshot, delta: RoutingDelta) -> RoutingSnapshot:
    """A snapshot with a delta's changes; the old one stays as it is for whoever holds it."""
    changed = {name: _applied(getattr(snapshot, name), getattr(delta, name)) for name in _MAPPINGS}
    return replace(snapshot, version=delta.version, **changed)


_MAPPINGS = tuple(each.name for each in fields(RoutingDelta) if each.name != "version")


def _difference(old: Mapping[str, T], new: Mapping[str, T]) -> dict[str, T | None]:
    if old is new:
        return {}
    changed: dict[str, T | None] = {
        name: value
        for name, value in new.items()
        if (known := old.get(name)) is not value and known != value  # most are the very same
    }
    changed.update(dict.fromkeys(old.keys() - new.keys()))
    return changed


def _applied(values: Mapping[str, T], changes: Mapping[str, T | None]) -> Mapping[str, T]:
    if not changes:
        return values
    merged = {**values, **changes}
    return {name: value for name, value in merged.items() if value is not None}
