"""The price map that ships with litellm: thousands of models with prices, limits and end dates.

Read as a file. The package is never imported, which would cost seconds and hundreds of megabytes.
What it lists is known, not reachable: no configured provider stands behind it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.discovery.source import (
    Listing,
    SourceError,
    lifecycle_at,
    read_moment,
    read_name,
    read_payload,
    read_price,
    read_tokens,
)
from storage import clock

_FILE = "model_prices_and_context_window_backup.json"
_MODES = frozenset({"chat", "responses"})
_SUPPORTS = "supports_"
#: What of an entry is kept for people; the rest are tiers and regions that nothing reads yet.
_KEPT = ("litellm_provider", "mode", "source", "deprecation_date", "cache_read_input_token_cost")


def price_map_path() -> Path | None:
    """Where the installed litellm keeps its price map; None if it is not installed."""
    spec = importlib.util.find_spec("litellm")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    return None


@dataclass(frozen=True)
class PriceMap:
    """The price map as a source."""

    path: Path
    name: str = "price_map"
    kind: str = "price_map"

    async def fetch(self) -> list[Listing]:
        """Every chat model of the map."""
        # Three megabytes of JSON: parsed beside the loop, which has other runs to serve.
        return await asyncio.to_thread(read_price_map, self.path, clock.now())


def read_price_map(path: Path, now: datetime) -> list[Listing]:
    """The listings of a price map file."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"the price map cannot be read: {error}") from error
    except ValueError as error:
        raise SourceError(f"the price map at {path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"the price map at {path} is not an object of models")
    listings = [_listing(name, entry, now) for name, entry in document.items()]
    return [listing for listing in listings if listing is not None]


def _listing(name: str, entry: object, now: datetime) -> Listing | None:
    """One model; None for what is no chat model (``sample_spec``, images, audio, rules)."""
    if not isinstance(entry, Mapping) or entry.get("mode") not in _MODES:
        return None
    external_id, provider = read_name(name), read_name(entry.get("litellm_provider"))
    if external_id is None or provider is None:
        return None
    retires_at = read_moment(entry.get("deprecation_date"))
    return Listing(
        external_id=external_id,
        provider=provider,
        model=external_id.removeprefix(f"{provider}/"),
        reachable=False,
        price_input=read_price(entry.get("input_cost_per_token")),
        price_output=read_price(entry.get("output_cost_per_token")),
        context_tokens=read_tokens(entry.get("max_input_tokens")),
        output_tokens=read_tokens(entry.get("max_output_tokens")),
        capabilities=_capabilities(entry),
        lifecycle=lifecycle_at(now, retires_at),
        retires_at=retires_at,
        payload=read_payload({key: entry[key] for key in _KEPT if key in entry}),
    )


def _capabilities(entry: Mapping[str, Any]) -> tuple[str, ...]:
    named = {key.removeprefix(_SUPPORTS) for key, value in entry.items() if _is_support(key, value)}
    # Every chat endpoint streams; the map only marks those that do so by a way of their own.
    return tuple(sorted(named | {"streaming"}))


def _is_support(key: str, value: object) -> bool:
    return value is True and key.startswith(_SUPPORTS) and key != "supports_native_streaming"
