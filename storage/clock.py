"""The one place that reads the wall clock.

Whoever decides gets the time as an argument; whoever stores asks here.
"""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)
