"""The process: takes its orders from standard input, says ``ready``, and lives as long as that is open.

Nothing but the gateway that started it may end it: a signal to the whole group reaches it too, while the
gateway still finishes its streams. When the gateway is gone, however that came about, so is this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from gateway.translator.handover import READY, Handover
from gateway.translator.library import Library
from gateway.translator.server import Translator

_log = logging.getLogger("gateway.translator")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: see the module."""
        yield


def main() -> None:
    """Serve until standard input ends."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    answers = _take_standard_output()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    handover = Handover.decode(line)
    threading.Thread(target=_end_with_standard_input, args=(handover.socket,), daemon=True).start()
    upstreams = {upstream.name: upstream for upstream in handover.upstreams}
    library = Library(upstreams)
    config = uvicorn.Config(
        Translator(library, upstreams).app(),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=120,  # longer than the worker keeps an idle connection
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.get_loop().set_exception_handler(_note)
        runner.run(_warm_up(library, handover))
        listener = _listen(handover.socket)
        os.write(answers, READY)
        runner.run(_Server(config).serve(sockets=[listener]))


async def _warm_up(library: Library, handover: Handover) -> None:
    """Before anybody waits. For other kinds the models are not known, and some look for credentials."""
    if any(upstream.kind == "anthropic" for upstream in handover.upstreams):
        await library.warm_up("anthropic/claude")


def _note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say that something went wrong, not in which words: they may hold a key or a prompt."""
    error = context.get("exception")
    if error is not None:
        _log.warning("a background task failed: %s", type(error).__name__)


def _take_standard_output() -> int:
    """Keep it for one word; whatever the library prints goes nowhere."""
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return kept


def _listen(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)  # of a process before this one
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(1024)
    return listener


def _end_with_standard_input(path: str) -> None:
    while sys.stdin.buffer.read(65536):
        pass
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)
        Path(path).parent.rmdir()
    os._exit(0)


if __name__ == "__main__":
    main()
