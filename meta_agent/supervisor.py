"""Keeps a set of processes running: started in order, restarted when they die, stopped in reverse.

Knows nothing of what they do, besides a question that is answered with yes once a process is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import logging
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_STEADY_SECONDS = 60.0  # alive for this long: its next death is a new story
#: For a process that does not end when asked: for one, and for all of them.
_STOP_SECONDS, _STOP_ALL_SECONDS = 8.0, 14.0
_LAST_STOP_SECONDS = 0.5  # for each that is asked after that
_LOG_BYTES = 16_000_000  # larger at a start: the log begins anew, and one older is kept
_LAST_WORDS_BYTES, _LAST_WORDS_LINES = 8_000, 12
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec as little as possible should happen


class StartError(RuntimeError):
    """A process did not become ready; the message says where to look."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process to keep running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None  #: answers 200 when the process can do its work
    ready: Callable[[], Awaitable[bool]] | None = None  #: the same, for who serves no URL
    ready_seconds: float = 60.0


class Supervisor:
    """Runs processes, each with a log file of its own."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._specs: dict[str, ProcessSpec] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._log_starts: dict[str, int] = {}  #: where the words of the latest process begin
        log_dir.mkdir(parents=True, exist_ok=True)

    def pid(self, name: str) -> int | None:
        """The process id, while it runs."""
        process = self._processes.get(name)
        return process.pid if process and process.returncode is None else None

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process and wait until it is ready. Raises :class:`StartError`."""
        self._specs[spec.name] = spec
        await self._spawn(spec)
        await self._until_ready(spec)
        self._watchers.append(asyncio.create_task(self._watch(spec)))

    async def _spawn(self, spec: ProcessSpec) -> asyncio.subprocess.Process:
        with self._open_log(spec.name) as output:
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                env={**os.environ, **spec.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A group of its own: Ctrl-C reaches the supervisor, who stops them in order.
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self._processes[spec.name] = process
        return process

    def log_file(self, name: str) -> Path:
        """Where a process writes."""
        return self._log_dir / f"{name}.log"

    def _open_log(self, name: str) -> BinaryIO:
        path = self.log_file(name)
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
        output = path.open("ab")
        self._log_starts[name] = output.tell()
        return output

    async def _until_ready(self, spec: ProcessSpec) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + spec.ready_seconds
        while True:
            process = self._processes[spec.name]
            if process.returncode is not None:
                ended = f"{spec.name} ended at once with {process.returncode}"
                raise StartError(f"{ended}:\n{self._last_words(spec.name)}")
            if await _is_ready(spec):
                return
            if loop.time() > until:
                late = f"{spec.name} is not ready after {spec.ready_seconds:.0f} s"
                raise StartError(f"{late}:\n{self._last_words(spec.name)}")
            await asyncio.sleep(0.1)

    def _last_words(self, name: str) -> str:
        path = self.log_file(name)
        with path.open("rb") as file:
            file.seek(max(self._log_starts.get(name, 0), path.stat().st_size - _LAST_WORDS_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LAST_WORDS_LINES:]
        return "\n".join([*lines, f"(all of it: {path})"])

    async def _watch(self, spec: ProcessSpec) -> None:
        loop = asyncio.get_running_loop()
        wait = _FIRST_WAIT
        while True:
            began = loop.time()
            code = await self._processes[spec.name].wait()
            if loop.time() - began > _STEADY_SECONDS:
                wait = _FIRST_WAIT
            log.warning("%s ended with %s; starting it again in %.1f s", spec.name, code, wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
            try:
                await self._spawn(spec)
            except OSError as error:  # out of memory or of process ids: the next try may succeed
                log.warning("%s could not be started: %s", spec.name, error)

    async def stop(self) -> None:
        """Stop every process, the last one started first; one that does not listen is killed."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        loop = asyncio.get_running_loop()
        until = loop.time() + _STOP_ALL_SECONDS
        for name in reversed(self._processes):
            left = max(until - loop.time(), _LAST_STOP_SECONDS)
            await self._stop_one(self._processes[name], min(left, _STOP_SECONDS))

    async def _stop_one(self, process: asyncio.subprocess.Process, seconds: float) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _die_with_parent() -> None:
    """Linux: a supervisor that is killed must not leave servers behind that hold its ports."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _is_ready(spec: ProcessSpec) -> bool:
    if spec.ready is not None and not await spec.ready():
        return False
    return spec.ready_url is None or await asyncio.to_thread(_answers, spec.ready_url)


#: A proxy of the surroundings has no part in a call that stays on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _answers(url: str) -> bool:
    try:
        with _OPENER.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException):
        return False
