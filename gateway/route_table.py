"""Keeps the newest routing snapshot, and the last good one on disk for when the database is away.

Woken by NOTIFY and, should that be lost, by a slow poll. Readers take ``snapshot`` and keep what they
took: a switch never changes a request that has begun. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path

import orjson

from storage.clock import now
from storage.database import Database, DatabaseUnavailable
from storage.interactions import words_of
from storage.routes import CHANNEL, RoutingSnapshot, acknowledge, load_snapshot

_log = logging.getLogger(__name__)

_FILE = "last-good-routes.json"
_READ_SECONDS = 5.0  #: after which a database that hangs counts as away: its next connection may be better
_LISTEN_PAUSE = 1.0  #: before subscribing again after the connection broke


class RouteTable:
    """The routes that this process serves by."""

    def __init__(self, database: Database, directory: Path, gateway_id: str, poll_seconds: float) -> None:
        self._database = database
        self._path = directory / _FILE
        self._gateway_id = gateway_id
        self._poll_seconds = poll_seconds
        self._wake = asyncio.Event()
        self.snapshot: RoutingSnapshot | None = None
        self.applied_at = 0  #: Unix time of the last change, for listings
        self.refreshed: float | None = None  #: monotonic time of the last successful read
        self.failing: str | None = None  #: why the last read failed; None: all is well

    @property
    def age_seconds(self) -> float | None:
        """Time since the database was last read; None: never by this process."""
        return None if self.refreshed is None else time.monotonic() - self.refreshed

    async def start(self) -> None:
        """Have a snapshot, if there is any: from the database, else the last good one."""
        await self.refresh()
        if self.snapshot is None:
            self._load_last_good()

    async def run(self) -> None:
        """Follow the database until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._poll())

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._database.listen(CHANNEL):
                    self._wake.set()
            except DatabaseUnavailable:
                pass  # the poll goes on and says so
            except Exception:
                _log.exception("routes: listening failed; the poll goes on")
            await asyncio.sleep(_LISTEN_PAUSE)

    async def _poll(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._wake.wait()
            self._wake.clear()
            await self.refresh()

    async def refresh(self) -> None:
        """Read the snapshot, serve by it, and only then say so."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._follow()
        except DatabaseUnavailable as error:
            self._note_failure(error)
        except Exception as error:
            _log.exception("reading the routes failed; the last good ones stay")
            self._note_failure(error)
        else:
            if self.failing is not None:
                _log.warning("routes: the database answers again")
            self.failing = None
            self.refreshed = time.monotonic()

    async def _follow(self) -> None:
        async with self._database.connection() as connection:
            snapshot = await load_snapshot(connection)
        self._apply(snapshot)
        async with self._database.transaction() as connection:
            await acknowledge(connection, self._gateway_id, snapshot.version)

    def _note_failure(self, error: Exception) -> None:
        if self.failing is None:
            _log.warning("routes: cannot read the database, the last good ones stay: %s", words_of(error))
        self.failing = words_of(error)

    def _apply(self, snapshot: RoutingSnapshot) -> None:
        if snapshot == self.snapshot:
            return
        self.snapshot = snapshot
        self.applied_at = int(now().timestamp())
        try:
            self._save(snapshot)
        except OSError as error:
            _log.error("routes: cannot keep the last good ones in %s: %s", self._path, error)

    def _save(self, snapshot: RoutingSnapshot) -> None:
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(orjson.dumps(snapshot.to_json()))
            file.flush()
            os.fsync(descriptor)
        fresh.replace(self._path)

    def _load_last_good(self) -> None:
        try:
            self.snapshot = RoutingSnapshot.from_json(orjson.loads(self._path.read_bytes()))
        except FileNotFoundError:
            _log.warning("routes: no last good ones in %s; not ready until the database answers", self._path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("routes: the last good ones in %s cannot be read: %s", self._path, error)
        else:
            self.applied_at = int(now().timestamp())
            _log.warning("routes: serving by the last good ones, version %d", self.snapshot.version)
