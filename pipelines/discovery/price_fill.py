"""What a provider's own listing leaves out, taken from the price map: by exact name only.

Several providers list nothing but ids. A neighbour's price would be worse than none, so a model
that the map does not know under the provider's own kind stays unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pipelines.discovery.source import Listing, lifecycle_at

#: What the map calls a kind of provider. Kinds that serve one's own machines have no list price.
MAP_PROVIDERS: Mapping[str, str] = {"openai": "openai", "google": "gemini", "openrouter": "openrouter"}


def index_price_map(kind: str, listings: Iterable[Listing]) -> dict[str, Listing]:
    """The map's listings for one kind of provider, by the model's name on the wire."""
    wanted = MAP_PROVIDERS.get(kind)
    return {listing.model: listing for listing in listings if listing.provider == wanted}


def fill(listing: Listing, known: Mapping[str, Listing], now: datetime) -> Listing:
    """The listing with its gaps filled, and a note of which."""
    # Google's list spells every id "models/<name>"; the map does not.
    entry = known.get(listing.model) or known.get(listing.model.removeprefix("models/"))
    if entry is None:
        return listing
    filled = _gaps(listing, entry, now)
    if not filled:
        return listing
    note = {"from": "price_map", "as": entry.external_id, "fields": sorted(filled)}
    return replace(listing, **filled, payload={**listing.payload, "filled": note})


def _gaps(listing: Listing, entry: Listing, now: datetime) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    if listing.price_input is None and listing.price_output is None:
        filled = {"price_input": entry.price_input, "price_output": entry.price_output}
    for name in ("context_tokens", "output_tokens"):
        if getattr(listing, name) is None:
            filled[name] = getattr(entry, name)
    if listing.retires_at is None and entry.retires_at is not None:
        filled |= {"retires_at": entry.retires_at, "lifecycle": lifecycle_at(now, entry.retires_at)}
    if set(listing.capabilities) <= {"streaming"}:  # the list says nothing of capabilities
        filled["capabilities"] = entry.capabilities
    return {name: value for name, value in filled.items() if value and value != getattr(listing, name)}
