"""The one place that reads the wall clock.

Whoever decides gets the time as an argument; whoever stores asks here.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


def milliseconds() -> int:
    """The present moment in milliseconds since 1970, where a datetime would be too dear."""
    return time.time_ns() // 1_000_000
