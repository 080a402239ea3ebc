"""The sidecar: its parts, what the worker's messages mean to them, and how it ends.

Knows the database and the spool directory. How messages travel is its caller's concern.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.sidecar.messages import (
    Applied,
    Closed,
    Configure,
    FromSidecar,
    FromWorker,
    Started,
    Status,
    Took,
    Unwritten,
    Watch,
)
from gateway.sidecar.routes import RouteFollower
from gateway.sidecar.shipper import Shipper
from gateway.sidecar.telemetry import Telemetry
from gateway.sidecar.usage import UsageBook
from storage.database import Database

_STATUS_SECONDS = 1.0


class Sidecar:
    """Everything that one worker's sidecar does. ``send`` must neither wait nor raise."""

    def __init__(self, configure: Configure, database: Database, send: Callable[[FromSidecar], None]) -> None:
        self._configure = configure
        self._send = send
        self._turned = asyncio.Event()
        self._telemetry = (
            Telemetry(configure.telemetry, configure.gateway_id, configure.providers)
            if configure.telemetry
            else None
        )
        self._book = UsageBook(database, configure.usage_seconds, send)
        self._routes = RouteFollower(database, configure, send=send, on_turn=self._turned.set)
        self._shipper = Shipper(
            database,
            Path(configure.spool_dir),
            configure.flush_rows,
            self._book,
            on_stored=self._offer,
            on_took=lambda number: send(Took(number)),
            on_turn=self._turned.set,
        )

    def _offer(self, interactions: Sequence[bytes]) -> None:
        if self._telemetry is not None:
            self._telemetry.offer(interactions)

    def receive(self, message: FromWorker) -> None:
        """Do what the worker wants; it is done later, and answered by messages."""
        match message:
            case Closed(up_to):
                self._shipper.closed(up_to)
            case Unwritten(number, lines):
                self._shipper.take(number, lines)
            case Applied(version):
                self._routes.applied(version)
            case Watch(subjects):
                self._book.watch(subjects)
            case Configure():
                raise ValueError("a sidecar is configured once")

    async def run(self) -> None:
        """Work until cancelled. Whatever a part raises ends it: a new sidecar knows no more than this one."""
        self._send(Started())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._routes.run())
            tasks.create_task(self._shipper.run())
            tasks.create_task(self._book.run())
            tasks.create_task(self._report())
            if self._telemetry is not None:
                tasks.create_task(self._telemetry.run())

    async def finish(self) -> None:
        """The worker has gone, and ``run`` was cancelled: ship what is left, for so long at most."""
        self._shipper.worker_is_gone()
        await self._shipper.finish(self._configure.finish_seconds)
        self._shipper.close()
        self._send(self._status())
        if self._telemetry is not None:
            await self._telemetry.finish()

    async def _report(self) -> None:
        while True:
            self._send(self._status())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    await self._turned.wait()
            self._turned.clear()

    def _status(self) -> Status:
        shipper, routes, telemetry = self._shipper, self._routes, self._telemetry
        return Status(
            shipped=shipper.shipped,
            torn=shipper.torn,
            refused=shipper.refused,
            waiting=shipper.waiting,
            database_failing=shipper.failing,
            routes_failing=routes.failing,
            routes_age_seconds=routes.age_seconds,
            exported=telemetry.exported if telemetry else 0,
            not_exported=telemetry.not_exported if telemetry else 0,
        )
