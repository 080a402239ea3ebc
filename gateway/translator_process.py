"""The translator's process, seen from the worker: started early, started again when it dies, waited for.

Knows how to start it and what to tell it; nothing of what is said on its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from secrets import token_hex

from gateway.errors import ConnectError
from gateway.settings import ProviderConfig
from gateway.translator.handover import READY, Handover, Upstream, redacted

_log = logging.getLogger(__name__)

_START_SECONDS = 30.0  #: litellm takes seconds to import, and more on a machine that has just started
_READ_MARGIN_SECONDS = 10.0  #: the worker's own limits come first
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 60.0  #: a process that lived this long did not die of its start
_LINE_LIMIT = 64 * 1024

#: What the process may see of the environment: how to find programs, certificates, proxies and the
#: credentials that clouds keep there. Never the gateway's own settings.
_ENVIRONMENT = frozenset(
    {
        "ALL_PROXY",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "NO_PROXY",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
    }
)
_ENVIRONMENT_PREFIXES = ("AWS_", "GOOGLE_", "LC_")


class TranslatorProcess:
    """One process for all providers of a worker that do not speak OpenAI's wire."""

    def __init__(self, providers: Iterable[ProviderConfig], *, start_seconds: float = _START_SECONDS) -> None:
        upstreams = tuple(_upstream(config) for config in providers)
        # Short, for a socket's path may have some hundred characters only; made when it is needed.
        self._directory = Path(tempfile.gettempdir()) / f"meta-agent-translator-{token_hex(8)}"
        self._handover = Handover(socket=str(self._directory / "socket"), upstreams=upstreams)
        self._secrets = [secret for upstream in upstreams for secret in upstream.secrets()]
        self._start_seconds = start_seconds
        self._ready = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._closed = False
        self.starts = 0  #: how often the process was started

    @property
    def socket(self) -> str:
        """Where it answers."""
        return self._handover.socket

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Begin to run it and go on until ``close``; does not wait for it. Asking again changes nothing."""
        if self._keeping is None and not self._closed:
            self._keeping = asyncio.ensure_future(self._keep_running())

    async def ready(self, seconds: float, deadline: float | None = None) -> None:
        """Wait until it answers; what a connection may take comes on top of what a start may take.

        The deadline, in the loop's time, is the caller's own.
        """
        if self._ready.is_set():
            return
        if self._closed:
            raise ConnectError("the translator process has been closed")
        await self.start()
        latest = asyncio.get_running_loop().time() + self._start_seconds + seconds
        try:
            async with asyncio.timeout_at(min(latest, deadline) if deadline else latest):
                await self._ready.wait()
        except TimeoutError:
            raise ConnectError(
                "the translator process did not start in time; see the gateway's log"
            ) from None

    def close(self) -> None:
        """End it. ``finish`` waits for that."""
        self._closed = True
        self._ready.clear()
        if self._keeping is not None:
            self._keeping.cancel()

    async def finish(self) -> None:
        """Wait until nothing of it is left."""
        if self._keeping is not None:
            await asyncio.gather(self._keeping, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- one process after the other

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = loop.time()
            try:
                await self._run_once()
            except OSError as error:
                _log.error("the translator process cannot be started: %s", error)
            pause = _FIRST_PAUSE_SECONDS if loop.time() - began > _STEADY_SECONDS else pause
            _log.error("the translator process ended; it is started again in %.1f s", pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gateway.translator"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            env=_environment(os.environ),
            start_new_session=True,  # signals of a terminal are for the gateway
        )
        self._process = process
        self.starts += 1
        reporting = asyncio.ensure_future(self._report(process))
        try:
            await self._greet(process)
            await process.wait()
        finally:
            self._ready.clear()
            await _end(process)
            await asyncio.gather(reporting, return_exceptions=True)
            self._process = None

    async def _greet(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._handover.encode())
        with contextlib.suppress(ConnectionError):  # it is gone already: that shows in the next line
            await process.stdin.drain()
        if await process.stdout.readline() == READY:
            self._ready.set()

    async def _report(self, process: asyncio.subprocess.Process) -> None:
        """What the process complains of, in the worker's own log."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # longer than the limit; what is too long to read is not worth reading
                continue
            if not line:
                return
            _log.warning("translator: %s", redacted(line.decode("utf-8", "replace").rstrip(), self._secrets))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def _upstream(config: ProviderConfig) -> Upstream:
    longest = max(config.answer_seconds, config.first_token_seconds, config.idle_seconds)
    return Upstream(
        name=config.name,
        kind=config.kind,
        base_url=_base_url(config),
        api_key=config.api_key,
        headers=dict(config.headers),
        extra=dict(config.extra),
        ca_file=config.ca_file,
        connect_seconds=config.connect_seconds,
        read_seconds=longest + _READ_MARGIN_SECONDS,
        max_answer_bytes=config.max_answer_bytes,
    )


def _base_url(config: ProviderConfig) -> str:
    """The library adds Anthropic's version path itself, also where it is there already."""
    url = config.base_url.rstrip("/")
    return url.removesuffix("/v1") if config.kind == "anthropic" else url


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in given.items()
        if name.upper() in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
