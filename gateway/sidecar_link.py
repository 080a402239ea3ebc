"""The worker's end of the pipe to its sidecar: starts the process, and starts it again when it ends.

Remembers what a new sidecar must be told. Loads no database driver: the other end is another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.sidecar.messages import (
    LINE_BYTES,
    Closed,
    Configure,
    FromSidecar,
    FromWorker,
    Took,
    Unwritten,
    Watch,
    decode_from_sidecar,
    encode,
)

_log = logging.getLogger(__name__)

#: ``-P``: a folder that happens to be called gateway, where somebody starts us, is not ours.
_COMMAND = (sys.executable, "-P", "-m", "gateway.sidecar")
_FIRST_PAUSE = 0.1  #: before a sidecar that ended is started again, doubled up to the longest
_LONGEST_PAUSE = 5.0
_STEADY_SECONDS = 10.0  #: after which an end is a new trouble, not the old one
_SILENT_SECONDS = 30.0  #: a sidecar says something each second; one that says nothing for so long hangs
_PARTING_SECONDS = 2.0  #: beyond the time to finish, before a sidecar is ended by force


class SidecarLink(Protocol):
    """How a worker speaks with its sidecar, wherever that lives."""

    @property
    def failing(self) -> str | None:
        """Why there is no sidecar just now; None: there is one."""
        ...

    async def start(self, configure: Configure, on_message: Callable[[FromSidecar], None]) -> None:
        """Have a sidecar, which is told ``configure`` first; does not wait until it answers."""
        ...

    def send(self, message: FromWorker) -> None:
        """Say something. Never waits or raises: what matters is said again to the next sidecar."""
        ...

    async def close(self, seconds: float) -> None:
        """Say nothing more; let it ship what is left for so long, hear it out, and end it."""
        ...


class _Remembered:
    """What a new sidecar must be told, in this order, to carry on where the last one ended."""

    def __init__(self, configure: Configure) -> None:
        self._configure = configure
        self._closed: Closed | None = None
        self._watch: Watch | None = None
        self._unwritten: dict[int, Unwritten] = {}

    def add(self, message: FromWorker) -> None:
        match message:
            case Closed():
                self._closed = message
            case Watch():
                self._watch = message
            case Unwritten(number):
                self._unwritten[number] = message

    def forget(self, took: Took) -> None:
        self._unwritten.pop(took.number, None)

    def messages(self) -> list[FromWorker]:
        latest = [message for message in (self._closed, self._watch) if message is not None]
        return [self._configure, *latest, *self._unwritten.values()]


class SidecarProcess:
    """A sidecar in a process of its own."""

    def __init__(self) -> None:
        self._remembered: _Remembered | None = None
        self._on_message: Callable[[FromSidecar], None] = lambda message: None
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._early: list[FromWorker] = []  # said before the start
        self.failing: str | None = "not started"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process else None

    async def start(self, configure: Configure, on_message: Callable[[FromSidecar], None]) -> None:
        """See :class:`SidecarLink`."""
        self._remembered = _Remembered(configure)
        for message in self._early:
            self._remembered.add(message)
        self._on_message = on_message
        self._task = asyncio.create_task(self._keep_alive(self._remembered))

    def send(self, message: FromWorker) -> None:
        """See :class:`SidecarLink`."""
        if self._remembered is None:
            self._early.append(message)
            return
        self._remembered.add(message)
        if self._process is not None:
            _write(self._process, message)

    async def close(self, seconds: float) -> None:
        """See :class:`SidecarLink`."""
        self._closing = True
        if self._task is None:
            return
        if self._process is None:  # between two of them: the next start of the gateway ships what is left
            self._task.cancel()
        elif self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + _PARTING_SECONDS):
                await asyncio.gather(self._task, return_exceptions=True)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_alive(self, remembered: _Remembered) -> None:
        pause = _FIRST_PAUSE
        while not self._closing:
            began = time.monotonic()
            self.failing = await self._live(remembered)
            if self._closing:
                return
            if time.monotonic() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            _log.error("sidecar: %s; started again in %.1f s", self.failing, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _live(self, remembered: _Remembered) -> str:
        """The life of one process; why it ended."""
        try:
            process = await _spawn()
        except OSError as error:
            return f"it cannot be started: {error}"
        self._process = process
        try:
            for message in remembered.messages():
                _write(process, message)
            trouble = await self._listen(process, remembered)
        finally:
            self._process = None
            await _end(process)
        return trouble or f"it ended with {process.returncode}"

    async def _listen(self, process: Process, remembered: _Remembered) -> str | None:
        """Hear what it says until it ends; what is wrong with it, if that can be said."""
        assert process.stdout is not None
        while True:
            try:
                async with asyncio.timeout(_SILENT_SECONDS):
                    line = await process.stdout.readline()
            except TimeoutError:
                return f"it has said nothing for {_SILENT_SECONDS:.0f} s"
            except (ValueError, OSError) as error:
                return f"it cannot be heard: {error}"
            if not line:
                return None
            try:
                message = decode_from_sidecar(line)
            except msgspec.DecodeError as error:
                return f"it says what nobody understands: {error}"
            self._take(message, remembered)

    def _take(self, message: FromSidecar, remembered: _Remembered) -> None:
        self.failing = None
        if isinstance(message, Took):
            remembered.forget(message)
        try:
            self._on_message(message)
        except Exception:
            _log.exception("sidecar: a message could not be taken")


async def _spawn() -> Process:
    # The same modules as ours, however we came by them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return await asyncio.create_subprocess_exec(
        *_COMMAND, stdin=PIPE, stdout=PIPE, env=environment, limit=LINE_BYTES
    )


def _write(process: Process, message: FromWorker) -> None:
    if process.stdin is not None and not process.stdin.is_closing():
        with contextlib.suppress(OSError, RuntimeError):  # it has just ended; the next one is told again
            process.stdin.write(encode(message))


async def _end(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
