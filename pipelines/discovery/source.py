"""What a catalogue is to the scan: a source that lists offerings in one shape.

Knows the shape and how to read hostile values into it; knows no source and no database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, Protocol

from storage.digests import canonical, digest
from storage.vocabulary import Lifecycle

#: Prices are stored with twelve decimals; what is smaller or dearer than this is no price per token.
_SMALLEST, _DEAREST = Decimal("0.000000000001"), Decimal(10)
_MOST_TOKENS = 10**9
_LONGEST_NAME = 200
_LONGEST_PAYLOAD = 4000


class SourceError(Exception):
    """A source could not be listed, or listed something that cannot be believed; says which."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One offering as its source lists it now."""

    external_id: str  #: the source's own name for it
    provider: str  #: who serves it
    model: str  #: the name to send on the wire
    reachable: bool  #: a configured provider can be called for it
    price_input: Decimal | None = None  #: USD per token; None = unknown, never free
    price_output: Decimal | None = None
    context_tokens: int | None = None
    output_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    lifecycle: Lifecycle = Lifecycle.ACTIVE
    retires_at: datetime | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)  #: what the source said, for people

    @cached_property
    def digest(self) -> str:
        """Names everything that a change is made of. The payload is not: birthdays and descriptions
        move without meaning anything."""
        return digest(
            [
                self.provider,
                self.model,
                self.reachable,
                _spelled(self.price_input),
                _spelled(self.price_output),
                self.context_tokens,
                self.output_tokens,
                sorted(self.capabilities),
                self.lifecycle,
                self.retires_at and self.retires_at.astimezone(UTC).isoformat(),
            ]
        )


class Source(Protocol):
    """Where models are discovered."""

    @property
    def name(self) -> str:
        """Its own name, unique among sources."""

    @property
    def kind(self) -> str:
        """What sort of catalogue it is."""

    async def fetch(self) -> list[Listing]:
        """Everything it lists now. Raises :class:`SourceError` with a sentence."""


def _spelled(price: Decimal | None) -> str | None:
    return None if price is None else f"{price.normalize():f}"


def read_price(value: object) -> Decimal | None:
    """USD per token, or None for unknown: zero is a placeholder in every catalogue, never a gift.

    >>> read_price("0.000003"), read_price(0), read_price(-1), read_price("free")
    (Decimal('0.000003000000'), None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        return None
    if not price.is_finite() or not _SMALLEST <= price <= _DEAREST:
        return None
    return price.quantize(_SMALLEST)


def read_tokens(value: object) -> int | None:
    """A limit in tokens, or None for anything that is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_TOKENS:
        return None
    return int(value)


def read_moment(value: object) -> datetime | None:
    """A date or a moment in ISO 8601, in UTC; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def read_name(value: object) -> str | None:
    """A model's name, if it is one that can be stored, shown and sent."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        return None
    return value if value.strip() == value else None


def read_payload(value: Mapping[str, Any]) -> dict[str, Any]:
    """What may be kept of a source's own words: plain JSON that the database takes, and not much of it."""
    try:
        text = canonical(value)
        text.encode()
    except (UnicodeEncodeError, ValueError):
        return {}
    if len(text) > _LONGEST_PAYLOAD or "\\u0000" in text:
        return {}
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def lifecycle_at(now: datetime, retires_at: datetime | None) -> Lifecycle:
    """Where an offering stands, by the date on which it ends."""
    if retires_at is None:
        return Lifecycle.ACTIVE
    return Lifecycle.RETIRED if retires_at <= now else Lifecycle.DEPRECATED
