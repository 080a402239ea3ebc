"""A gateway as the product starts it: ``gateway.process.serve`` in a process of its own.

Tells on demand what it has loaded (SIGUSR2) and where its time goes (SIGUSR1: begin, and SIGUSR1: end).
"""

from __future__ import annotations

import collections
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

_EVERY_SECONDS = 0.002  # of CPU time


class Sampler:
    """Counts which function runs, each so many milliseconds of CPU time of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: collections.Counter[str] | None = None

    def toggle(self, *_: Any) -> None:
        """Begin, or write the counts down."""
        if self._counts is None:
            self._counts = collections.Counter()
            signal.signal(signal.SIGPROF, self._sample)
            signal.setitimer(signal.ITIMER_PROF, _EVERY_SECONDS, _EVERY_SECONDS)
        else:
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(self._path, self._counts)
            self._counts = None

    def _sample(self, _: int, frame: FrameType | None) -> None:
        name = "the event loop"
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            if module.startswith(("gateway", "storage", "uvicorn")):
                name = f"{module}:{frame.f_code.co_name}"
                break
            frame = frame.f_back
        if self._counts is not None:
            self._counts[name] += 1


def _write(path: Path, value: Any) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value))
    unfinished.rename(path)


def main(name: str, port: str, upstream: str, url: str, notes: str) -> None:
    """Serve until SIGTERM."""
    directory = Path(notes)
    sampler = Sampler(directory / "samples.json")
    signal.signal(signal.SIGUSR1, sampler.toggle)
    signal.signal(signal.SIGUSR2, lambda *_: _write(directory / "modules.json", sorted(sys.modules)))

    from gateway.process import serve
    from gateway.settings import GatewayConfig, ProviderConfig

    provider = ProviderConfig(
        name="mock", kind="openai_compatible", base_url=f"http://127.0.0.1:{upstream}/v1", api_key="x"
    )
    config = GatewayConfig(
        gateway_id=name,
        spool_dir=directory / "spool",
        providers={"mock": provider},
        port=int(port),
        database_url=url,
        shared_port=True,  # with the other workers, where there are some
    )
    serve(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
