"""A sidecar on the worker's own event loop, for tests: the same parts, without a process each.

A real worker never loads this: it brings the database driver with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from gateway.sidecar.core import Sidecar
from gateway.sidecar.messages import (
    Configure,
    FromSidecar,
    FromWorker,
    decode_from_sidecar,
    decode_from_worker,
    encode,
)
from storage.database import Database


class InProcessSidecar:
    """A ``SidecarLink`` without a pipe. Messages are written and read all the same."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sidecar: Sidecar | None = None
        self._task: asyncio.Task[None] | None = None
        self._early: list[FromWorker] = []
        self.failing: str | None = "not started"

    async def start(self, configure: Configure, on_message: Callable[[FromSidecar], None]) -> None:
        """See ``gateway.sidecar_link.SidecarLink``."""
        loop = asyncio.get_running_loop()

        def carry(message: FromSidecar) -> None:
            loop.call_soon(on_message, decode_from_sidecar(encode(message)))

        self._sidecar = Sidecar(configure, self._database, carry)
        for message in self._early:
            self._sidecar.receive(message)
        self._task = asyncio.create_task(self._sidecar.run())
        self.failing = None

    def send(self, message: FromWorker) -> None:
        """See ``gateway.sidecar_link.SidecarLink``."""
        if self._sidecar is None:
            self._early.append(message)
        else:
            self._sidecar.receive(decode_from_worker(encode(message)))

    async def close(self, seconds: float) -> None:
        """See ``gateway.sidecar_link.SidecarLink``."""
        if self._sidecar is None or self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task  # what broke in it is the test's to see
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + 2):
                await self._sidecar.finish()
        await asyncio.sleep(0)  # what was said last is heard
        self.failing = "closed"
