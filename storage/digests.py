"""Canonical JSON and its SHA-256: how content is named, bound and chained."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, non-JSON values by their ``str``."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest(value: Any) -> str:
    """``sha256:<hex>`` of the canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    return "sha256:" + hashlib.sha256(canonical(value).encode()).hexdigest()
