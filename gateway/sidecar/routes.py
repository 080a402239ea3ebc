"""Follows the routes in the database and tells the worker what changed.

Woken by NOTIFY and, should that be lost, by a poll each second. Both read only what is new; now and then
everything is read, so that nothing missed stays so for long. Writes down the last good routes for a
start without the database. A version is acknowledged only once the worker serves by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from gateway.sidecar.messages import LAST_GOOD, Changed, Configure, Replaced
from gateway.sidecar.trouble import warn_once
from storage.clock import now
from storage.database import Database, DatabaseUnavailable
from storage.routes import CHANNEL, PRICES, acknowledge, load_changes, load_snapshot
from storage.routing import RoutingSnapshot, difference

_log = logging.getLogger(__name__)

_READ_SECONDS = 5.0  #: after which a database that hangs counts as away: its next connection may be better
_LISTEN_PAUSE = 1.0  #: before subscribing again after the connection broke


class RouteFollower:
    """The task that keeps a worker's routes fresh."""

    def __init__(
        self,
        database: Database,
        configure: Configure,
        *,
        send: Callable[[Replaced | Changed], None],
        on_turn: Callable[[], None],
    ) -> None:
        self._database = database
        self._configure = configure
        self._path = Path(configure.spool_dir) / LAST_GOOD
        self._send = send
        self._on_turn = on_turn
        self._wake = asyncio.Event()
        self._known: RoutingSnapshot | None = None
        self._since: datetime | None = None
        self._everything = True
        self._everything_at = time.monotonic()
        self._applied: int | None = None
        self._just_applied = asyncio.Event()
        self._read_at: float | None = None
        self.failing: str | None = None  #: why the last read failed; None: all is well

    @property
    def age_seconds(self) -> float | None:
        """Time since the database was last read; None: never by this process."""
        return None if self._read_at is None else time.monotonic() - self._read_at

    def applied(self, version: int) -> None:
        """The worker serves by that version."""
        self._applied = version
        self._just_applied.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._poll())
            tasks.create_task(self._acknowledge())

    # -- hearing of changes

    async def _listen(self) -> None:
        while True:
            try:
                async for channel, payload in self._database.listen(CHANNEL):
                    # The first item has no channel: who knows what was said before the subscription stood.
                    self._everything |= not channel or payload == PRICES
                    self._wake.set()
            except DatabaseUnavailable:
                pass  # the poll goes on and says so
            except Exception:
                _log.exception("routes: listening failed; the poll goes on")
            await asyncio.sleep(_LISTEN_PAUSE)

    async def _poll(self) -> None:
        while True:
            await self._refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._configure.route_poll_seconds):
                    await self._wake.wait()
            self._wake.clear()

    # -- reading

    async def _refresh(self) -> None:
        turned = self.failing
        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._read()
        except Exception as error:
            consequence = "routes: they cannot be read, the last good ones stay"
            self.failing = warn_once(_log, consequence, error, self.failing)
        else:
            if self.failing is not None:
                _log.warning("routes: the database answers again")
            self.failing = None
            self._read_at = time.monotonic()
        if turned != self.failing:
            self._on_turn()

    async def _read(self) -> None:
        began = now()
        if time.monotonic() - self._everything_at > self._configure.full_load_seconds:
            self._everything = True
        everything, self._everything = self._everything, False
        try:
            snapshot = await self._load(everything)
        except BaseException:
            self._everything |= everything
            raise
        if everything:
            self._everything_at = time.monotonic()
        self._since = began
        self._tell(snapshot)

    async def _load(self, everything: bool) -> RoutingSnapshot:
        async with self._database.connection() as connection:
            if everything or self._known is None or self._since is None:
                return await load_snapshot(connection)
            return await load_changes(connection, self._known, self._since)

    def _tell(self, snapshot: RoutingSnapshot) -> None:
        known = self._known
        if known is snapshot:
            return
        if known is None:
            self._send(Replaced(snapshot))
        else:
            delta = difference(known, snapshot)
            if delta.is_empty and delta.version == known.version:
                return
            self._send(Changed(delta))
        self._known = snapshot
        self._save(snapshot)

    def _save(self, snapshot: RoutingSnapshot) -> None:
        fresh = self._path.with_suffix(f".{os.getpid()}.new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(snapshot.encode())
                file.flush()
                os.fsync(descriptor)
            fresh.replace(self._path)
        except OSError as error:
            _log.error("routes: cannot keep the last good ones in %s: %s", self._path, error)

    # -- saying so

    async def _acknowledge(self) -> None:
        """Tell the control plane which version the worker serves by, at once and then as a sign of life."""
        while True:
            await self._just_applied.wait()
            self._just_applied.clear()
            while not self._just_applied.is_set():
                await self._acknowledge_once()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._configure.route_poll_seconds):
                        await self._just_applied.wait()

    async def _acknowledge_once(self) -> None:
        if self._applied is None:
            return
        try:
            async with asyncio.timeout(_READ_SECONDS), self._database.transaction() as connection:
                await acknowledge(connection, self._configure.gateway_id, self._applied)
        except DatabaseUnavailable:
            pass  # the poll says so
        except Exception:
            _log.exception("routes: the version served cannot be acknowledged")
