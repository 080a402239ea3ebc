"""Keeps a set of processes running: started in order, restarted when they die, stopped in reverse.

Knows nothing of what they do, besides a URL that answers 200 once a process is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_STEADY_SECONDS = 60.0  # alive for this long: its next death is a new story
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


class StartError(RuntimeError):
    """A process did not become ready; the message says where to look."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process to keep running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None  #: answers 200 when the process can do its work
    ready_seconds: float = 60.0


class Supervisor:
    """Runs processes, each with a log file of its own."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._specs: dict[str, ProcessSpec] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False
        log_dir.mkdir(parents=True, exist_ok=True)

    def pid(self, name: str) -> int | None:
        """The process id, while it runs."""
        process = self._processes.get(name)
        return process.pid if process and process.returncode is None else None

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process and wait until it is ready. Raises :class:`StartError`."""
        self._specs[spec.name] = spec
        await self._spawn(spec)
        if spec.ready_url is not None:
            await self._until_ready(spec, spec.ready_url)
        self._watchers.append(asyncio.create_task(self._watch(spec)))

    async def _spawn(self, spec: ProcessSpec) -> asyncio.subprocess.Process:
        with self.log_file(spec.name).open("ab") as output:
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

    async def _until_ready(self, spec: ProcessSpec, url: str) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + spec.ready_seconds
        while True:
            process = self._processes[spec.name]
            if process.returncode is not None:
                raise StartError(f"{spec.name} ended at once:\n{self._last_words(spec.name)}")
            if await asyncio.to_thread(_answers, url):
                return
            if loop.time() > until:
                raise StartError(
                    f"{spec.name} is not ready after {spec.ready_seconds:.0f} s:\n{self._last_words(spec.name)}"
                )
            await asyncio.sleep(0.1)

    def _last_words(self, name: str) -> str:
        text = self.log_file(name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-12:]) + f"\n(all of it: {self.log_file(name)})"

    async def _watch(self, spec: ProcessSpec) -> None:
        loop = asyncio.get_running_loop()
        wait = _FIRST_WAIT
        while True:
            began = loop.time()
            code = await self._processes[spec.name].wait()
            if self._stopping:
                return
            if loop.time() - began > _STEADY_SECONDS:
                wait = _FIRST_WAIT
            log.warning("%s ended with %s; starting it again in %.1f s", spec.name, code, wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
            if not self._stopping:
                await self._spawn(spec)

    async def stop(self) -> None:
        """Stop every process, the last one started first; one that does not listen is killed."""
        self._stopping = True
        for name in reversed(self._processes):
            await self._stop_one(self._processes[name])
        for watcher in self._watchers:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _stop_one(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _die_with_parent() -> None:
    """Linux: a supervisor that is killed must not leave servers behind that hold its ports."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  # our own URL
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
