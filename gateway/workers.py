"""Several whole gateways on one port: the kernel deals out connections, nothing is shared but the database.

A parent that only forks, waits and forks again. Each gateway has a spool directory and a name of its
own, so that a restart finds what its predecessor left.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from gateway.process import serve
from gateway.settings import GatewayConfig

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_STEADY_SECONDS = 10.0  #: one that lived this long did not die of its start
_PR_SET_PDEATHSIG = 1


def serve_several(config: GatewayConfig, count: int) -> None:
    """Run so many gateways until SIGTERM or SIGINT; one that dies is started again."""
    _warn_of_left_over(config, count)
    if count == 1:
        serve(config)
        return
    _Parent([functools.partial(serve, each) for each in configs_of(config, count)]).run()


def configs_of(config: GatewayConfig, count: int) -> Iterator[GatewayConfig]:
    """What each of them is told. The first keeps name and directory, so that one may become several."""
    yield dataclasses.replace(config, shared_port=True)
    for number in range(1, count):
        yield dataclasses.replace(
            config,
            gateway_id=f"{config.gateway_id}#{number}",
            spool_dir=_directory_of(config, number),
            shared_port=True,
        )


def _directory_of(config: GatewayConfig, number: int) -> Path:
    return config.spool_dir / f"worker-{number}"


def _warn_of_left_over(config: GatewayConfig, count: int) -> None:
    """Fewer gateways than before: what the others left to be shipped needs one of them once more."""
    for directory in sorted(config.spool_dir.glob("worker-*")):
        number = directory.name.removeprefix("worker-")
        if number.isdigit() and int(number) >= count and any(directory.glob("*.jsonl")):
            text = "%s holds interactions that nobody ships; start %d gateways once, or ship it by hand"
            _log.warning(text, directory, int(number) + 1)


class _Parent:
    """Keeps one child for each of some tasks."""

    def __init__(self, tasks: list[Callable[[], None]]) -> None:
        self._tasks = tasks
        self._children: dict[int, tuple[int, float]] = {}  # pid -> (task, when it began)
        self._pauses = [_FIRST_PAUSE] * len(tasks)
        self._stopping = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        for number in range(len(self._tasks)):
            self._fork(number)
        while self._children:
            pid, status = os.wait()
            number, began = self._children.pop(pid)
            if not self._stopping:
                self._again(number, began, os.waitstatus_to_exitcode(status))

    def _fork(self, number: int) -> None:
        pid = os.fork()
        if pid:
            self._children[pid] = (number, time.monotonic())
            if self._stopping:  # the signal came while there was nobody to hand it to
                os.kill(pid, signal.SIGTERM)
            return
        self._live(number)

    def _live(self, number: int) -> None:
        """A child's whole life: never returns into the parent's loop."""
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if sys.platform == "linux":  # killed without a word, the parent leaves nobody behind on the port
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            self._tasks[number]()
            code = 0
        except BaseException:
            _log.exception("gateway %d failed", number)
        finally:
            os._exit(code)

    def _again(self, number: int, began: float, code: int) -> None:
        pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY_SECONDS else self._pauses[number]
        _log.error("gateway %d ended with %d; started again in %.1f s", number, code, pause)
        time.sleep(pause)
        self._pauses[number] = min(pause * 2, _LONGEST_PAUSE)
        if not self._stopping:
            self._fork(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for pid in tuple(self._children):
            os.kill(pid, signal.SIGTERM)
