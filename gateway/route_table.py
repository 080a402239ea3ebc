"""The routes that a worker serves by: what its sidecar told it, at first the last good ones on disk.

Readers take ``snapshot`` and keep what they took: a switch never changes a request that has begun.
Knows no database and nothing of requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.sidecar.messages import LAST_GOOD, Changed, Replaced, Status
from storage.clock import now
from storage.routing import RoutingSnapshot, applied

_log = logging.getLogger(__name__)


class RouteTable:
    """The newest snapshot that this worker knows."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LAST_GOOD
        self.snapshot: RoutingSnapshot | None = None
        self.applied_at = 0  #: Unix time of the last change, for listings
        self.failing: str | None = None  #: why the routes could not be read lately; None: all is well
        self._read_at: float | None = None
        #: Called with each new snapshot.
        self.on_switch: Callable[[RoutingSnapshot], None] = lambda snapshot: None

    @property
    def age_seconds(self) -> float | None:
        """Time since the database was last read; None: not since the start."""
        return None if self._read_at is None else time.monotonic() - self._read_at

    def load_last_good(self) -> None:
        """Serve by what an earlier sidecar wrote down, until something newer is heard."""
        try:
            self._switch(RoutingSnapshot.decode(self._path.read_bytes()))
        except FileNotFoundError:
            _log.warning("routes: no last good ones in %s; not ready until the database answers", self._path)
        except (OSError, msgspec.DecodeError) as error:
            _log.error("routes: the last good ones in %s cannot be read: %s", self._path, error)

    def apply(self, message: Replaced | Changed) -> int:
        """Serve by what the sidecar read just now; the version that this makes."""
        self.failing = None
        self._read_at = time.monotonic()
        if isinstance(message, Replaced):
            fresh = message.snapshot
        else:
            fresh = applied(self.snapshot or RoutingSnapshot(), message.delta)
        if fresh != self.snapshot:
            self._switch(fresh)
        return fresh.version

    def note(self, status: Status) -> None:
        """Remember how well the sidecar can read."""
        self.failing = status.routes_failing
        if status.routes_age_seconds is not None:
            self._read_at = time.monotonic() - status.routes_age_seconds

    def _switch(self, snapshot: RoutingSnapshot) -> None:
        self.snapshot = snapshot
        self.applied_at = int(now().timestamp())
        self.on_switch(snapshot)
