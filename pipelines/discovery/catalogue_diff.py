"""A source's listing against what is known of it: what to store, and what to call a change.

Pure: the rows and the clock come in as arguments. Also judges whether a listing can be believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pipelines.discovery.source import Listing
from storage.ids import new_id
from storage.registry import Offering
from storage.vocabulary import Lifecycle

#: A source that suddenly lists less than this share of what it listed is broken, not poorer.
BELIEVABLE_SHARE = 0.5
#: Absent in this many scans in a row: it is gone. Catalogues lose single models for minutes.
MISSED_SCANS = 3
_MOST_LISTINGS = 50_000

#: What each kind of change is about.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "price": ("price_input", "price_output"),
    "lifecycle": ("lifecycle", "retires_at"),
    "limits": ("context_tokens", "output_tokens"),
    "capabilities": ("capabilities",),
}


@dataclass(frozen=True)
class CatalogueDiff:
    """What one scan of a source changes."""

    inserts: list[dict[str, Any]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    missed: list[dict[str, Any]] = field(default_factory=list)  #: updates of those not listed
    seen: list[str] = field(default_factory=list)  #: external ids listed again
    changes: list[dict[str, Any]] = field(default_factory=list)


def doubt(known: Mapping[str, Offering], listings: Sequence[Listing]) -> str | None:
    """Why a listing cannot be believed; None if it can. The last good one stays in its place."""
    if not listings and known:
        return "it lists no models at all; the last good listing stays"
    if len(listings) > _MOST_LISTINGS:
        return f"it lists {len(listings)} models, more than {_MOST_LISTINGS}; the last good listing stays"
    standing = [each for each in known.values() if each.lifecycle != Lifecycle.MISSING]
    if len(listings) < BELIEVABLE_SHARE * len(standing):
        return f"it lists {len(listings)} models after {len(standing)}; the last good listing stays"
    return None


def diff(known: Mapping[str, Offering], listings: Sequence[Listing], now: datetime) -> CatalogueDiff:
    """What to store so that the registry says what the source says now."""
    result = CatalogueDiff()
    listed = {listing.external_id: listing for listing in listings}
    first_import = not known
    for listing in listed.values():
        offering = known.get(listing.external_id)
        if offering is None:
            _add(result, listing, now, first_import)
        elif _is_same(offering, listing):
            result.seen.append(listing.external_id)
        else:
            _update(result, offering, listing, now)
    for offering in known.values():
        if offering.external_id not in listed and offering.lifecycle != Lifecycle.MISSING:
            _miss(result, offering)
    return result


def _add(result: CatalogueDiff, listing: Listing, now: datetime, first_import: bool) -> None:
    offering_id = new_id("off")
    row = {"id": offering_id, "external_id": listing.external_id, "first_seen_at": now}
    result.inserts.append(row | _columns(listing, now))
    # The first import of a reference catalogue is no news: thousands of rows that "appeared" today
    # would bury the handful that can be called, which are news even then.
    if listing.reachable or not first_import:
        result.changes.append(_change(offering_id, "appeared", None, _told(listing)))


def _is_same(offering: Offering, listing: Listing) -> bool:
    return (
        offering.payload_digest == listing.digest
        and offering.lifecycle != Lifecycle.MISSING
        and offering.reachable == listing.reachable
    )


def _update(result: CatalogueDiff, offering: Offering, listing: Listing, now: datetime) -> None:
    result.updates.append({"id": offering.id} | _columns(listing, now))
    returned = offering.lifecycle == Lifecycle.MISSING
    if returned or (listing.reachable and not offering.reachable):
        result.changes.append(_change(offering.id, "returned", None, _told(listing)))
    for kind, names in _KINDS.items():
        before = {name: _plain(getattr(offering, name)) for name in names}
        after = {name: _plain(getattr(listing, name)) for name in names}
        if before != after and not (returned and kind == "lifecycle"):
            result.changes.append(_change(offering.id, kind, before, after))


def _miss(result: CatalogueDiff, offering: Offering) -> None:
    missed = offering.scans_missed + 1
    gone = missed >= MISSED_SCANS
    lifecycle = Lifecycle.MISSING if gone else offering.lifecycle
    reachable = offering.reachable and not gone
    result.missed.append(
        {"id": offering.id, "scans_missed": missed, "lifecycle": lifecycle, "reachable": reachable}
    )
    if gone:
        before = {"lifecycle": offering.lifecycle, "last_seen_at": offering.last_seen_at.isoformat()}
        result.changes.append(_change(offering.id, "vanished", before, {"lifecycle": lifecycle}))


def _columns(listing: Listing, now: datetime) -> dict[str, Any]:
    return {
        "provider": listing.provider,
        "model": listing.model,
        "reachable": listing.reachable,
        "price_input": listing.price_input,
        "price_output": listing.price_output,
        "context_tokens": listing.context_tokens,
        "output_tokens": listing.output_tokens,
        "capabilities": list(listing.capabilities),
        "lifecycle": listing.lifecycle,
        "retires_at": listing.retires_at,
        "payload_digest": listing.digest,
        "payload": dict(listing.payload),
        "last_seen_at": now,
        "scans_missed": 0,
    }


def _told(listing: Listing) -> dict[str, Any]:
    names = ("provider", "model", "reachable", "price_input", "price_output", "context_tokens", "lifecycle")
    return {name: _plain(getattr(listing, name)) for name in names}


def _change(
    offering_id: str, kind: str, before: dict[str, Any] | None, after: dict[str, Any] | None
) -> dict[str, Any]:
    return {"offering_id": offering_id, "kind": kind, "before": before, "after": after}


def _plain(value: Any) -> Any:
    """The value as a change shows it: one spelling for what means the same."""
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, list | tuple):
        return sorted(value)
    return str(value) if isinstance(value, Lifecycle) else value
