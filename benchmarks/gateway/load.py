"""Load: chat completions of about 1 KB from many conversations, counted and timed.

By a client of our own, in C if there is a compiler, which waits for every request that it sent: what wrk
drops at its end has cost CPU as well, and weighs with those who answer a hundred a second. Without a
compiler wrk makes the plain load all the same, since asyncio would be the bottleneck.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.gateway import native
from benchmarks.gateway.provider import STORY

#: As applications send it; peers without keys do not look at it.
KEY_ID, KEY_SECRET = "bench", "0" * 48
KEY = f"ma_live_{KEY_ID}_{KEY_SECRET}"
_CONVERSATIONS = 1000

_WRK = """
local bodies, at = {}, 0
init = function()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer %(key)s"
  for line in io.lines("%(bodies)s") do bodies[#bodies + 1] = wrk.format(nil, nil, nil, line) end
end
request = function() at = at %% #bodies + 1; return bodies[at] end
done = function(summary)
  local e = summary.errors
  io.write(string.format("R %%d %%d %%d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What a load generator saw."""

    good: int
    seconds: float
    failed: Mapping[str, int] = field(default_factory=dict)  #: how -> how many; nothing that is 0
    latency_us: tuple[int, ...] = ()
    first_us: tuple[int, ...] = ()  #: until the first text of an answer

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds


@dataclass(frozen=True)
class Target:
    """Where load goes, and what it asks for."""

    port: int
    stream: bool = False
    model: str = "bench"
    key: str = KEY


@dataclass(frozen=True)
class Generator:
    """A load generator in a directory for its files."""

    directory: Path

    def saturate(self, target: Target, seconds: float, connections: int = 16) -> Load:
        """As much as goes over some connections. What fails ends the benchmark."""
        if not target.stream and shutil.which("wrk") and not native.build("load", self.directory):
            return self._wrk(target, ceil(seconds), connections)
        return must_be_good(self.run(target, seconds, connections=connections))

    def pace(self, target: Target, seconds: float, rate: float) -> Load:
        """So many requests a second at random moments, each timed from when it was due."""
        return must_be_good(self.run(target, seconds, rate=rate))

    def run(self, target: Target, seconds: float, **options: float) -> Load:
        """A client of our own: every request is waited for and counted, failed ones too."""
        finished = subprocess.run(
            self.command(target, seconds, **options), capture_output=True, text=True, check=True
        )
        return read(finished.stdout)

    def command(
        self, target: Target, seconds: float, *, connections: float = 16, rate: float = 0, requests: float = 0
    ) -> list[str]:
        """How that client is started; it prints what :func:`read` takes."""
        program = native.build("load", self.directory)
        client = [str(program)] if program else [sys.executable, "-m", "benchmarks.gateway.slow_load"]
        numbers = (int(connections), seconds, rate, int(requests))
        return [*client, str(target.port), str(self._bodies(target)), target.key, *map(str, numbers)]

    def _wrk(self, target: Target, seconds: int, connections: int) -> Load:
        script = self.directory / f"{target.model}.lua"
        script.write_text(_WRK % {"key": target.key, "bodies": self._bodies(target)})
        url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"^R (\d+) (\d+) (\d+)$", output, re.M)
        if not found or int(found[3]) or not int(found[1]):
            raise SystemExit(f"the load failed:\n{output}")
        return Load(int(found[1]), int(found[2]) / 1e6)

    def _bodies(self, target: Target) -> Path:
        path = self.directory / f"{target.model}-{'stream' if target.stream else 'plain'}.bodies"
        if not path.exists():
            lines = (json.dumps(_body(target, number)) for number in range(_CONVERSATIONS))
            path.write_text("\n".join(lines) + "\n")
        return path


def _body(target: Target, number: int) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You tell short stories to children of seven."},
        {"role": "user", "content": STORY * 10 + f"Go on, {number}."},
    ]
    metadata = {"conversation_id": f"conversation-{number}", "user_id": f"reader-{number % 97}"}
    return {"model": target.model, "messages": messages, "metadata": metadata, "stream": target.stream}


def read(output: str) -> Load:
    """What the client of our own printed."""
    seen = json.loads(output)
    return Load(
        good=seen["good"],
        seconds=seen["seconds"],
        failed={how: count for how, count in seen["failed"].items() if count},
        latency_us=tuple(seen["latency_us"]),
        first_us=tuple(seen["first_us"]),
    )


def must_be_good(seen: Load) -> Load:
    """The same, or the end: a benchmark of failures tells nothing."""
    if seen.failed or not seen.good:
        raise SystemExit(f"the load failed: {dict(seen.failed)}, {seen.good} were answered")
    return seen


def percentile(samples: tuple[int, ...] | list[int], share: float) -> float:
    """The sample below which that share of them lies."""
    return float(sorted(samples)[min(int(len(samples) * share), len(samples) - 1)]) if samples else 0.0


median = functools.partial(percentile, share=0.5)
