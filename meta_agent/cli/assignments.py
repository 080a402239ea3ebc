"""``name=value`` on the command line: a dotted name, and a value as JSON where it is that, else as text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from meta_agent.cli.failures import usage


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """What was assigned, nested as its names say; the value ``none`` takes away what is there.

    >>> parse_assignments(["limits.requests_per_minute=60", "capture=redacted", "limits.usd_per_day=none"])
    {'limits': {'requests_per_minute': 60, 'usd_per_day': None}, 'capture': 'redacted'}
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        path = name.strip().split(".")
        if not separator or not all(path):
            raise usage(f"{text!r} is no assignment; write name=value, such as requests_per_minute=60.")
        below = parsed
        for part in path[:-1]:
            below = below.setdefault(part, {})
            if not isinstance(below, dict):
                raise usage(f"{name} is assigned twice, as a value and as a group of them.")
        if path[-1] in below:
            raise usage(f"{name} is assigned twice.")
        below[path[-1]] = _value(value.strip())
    return parsed


def _value(text: str) -> Any:
    if text in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
