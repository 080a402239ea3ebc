"""Memory over very many requests: it must stay flat."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from benchmarks.gateway.load import Target, must_be_good, read
from benchmarks.gateway.participants import Gateway
from benchmarks.gateway.processes import memory
from benchmarks.gateway.report import Report
from benchmarks.gateway.stage import Stage

_SHOWN = 12
_LONGEST_SECONDS = 24 * 3600
_SAMPLE_SECONDS = 1.0


def watch_memory(stage: Stage, gateway: Gateway, requests: int, report: Report) -> None:
    """Sample what the gateway's processes hold while it answers so many requests."""
    assert gateway.pid
    command = stage.generator.command(Target(gateway.port), _LONGEST_SECONDS, requests=requests)
    began, samples = time.monotonic(), []
    seen_by_it = stage.directory / "soak.json"
    process = subprocess.Popen(command, stdout=seen_by_it.open("w"))
    try:
        while process.poll() is None:
            samples.append(_sample(gateway.pid, time.monotonic() - began))
            time.sleep(_SAMPLE_SECONDS)
        seen = must_be_good(read(seen_by_it.read_text()))
    finally:
        process.kill()
        process.wait()
    gateway.settle()
    samples.append(_sample(gateway.pid, time.monotonic() - began))
    step = max(1, len(samples) // _SHOWN)
    third = max(1, len(samples) // 3)
    note = ", ".join(
        f"{part} {_mean(samples[-third:], part) - _mean(samples[third : 2 * third], part):+.1f} MB"
        for part in samples[-1]
        if part != "s"
    )
    report.section(
        "memory",
        f"Memory over {seen.good:,} plain requests, RSS in MB",
        [*samples[:-1:step], samples[-1]],
        [f"From the second third to the last: {note}. {seen.rate:,.0f} requests a second."],
    )


def _sample(pid: int, second: float) -> dict[str, Any]:
    return {"s": int(second), **{part: held.rss for part, held in memory(pid).items()}}


def _mean(samples: list[dict[str, Any]], part: str) -> float:
    return sum(float(sample.get(part, 0.0)) for sample in samples) / max(1, len(samples))
