"""Two gateways on two cores against one gateway on one, on the same port.

The load generator and the mock provider need CPU as well, and there are no cores for them alone on a small
machine. So each core gets the same: a gateway, a load generator and a mock provider. Twice that should do
twice as much; what is lost, the gateways lose to each other, to the kernel or to PostgreSQL.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

from benchmarks.gateway.load import Load, Target, must_be_good, read
from benchmarks.gateway.participants import Gateway, our_gateway
from benchmarks.gateway.processes import DidNotStartError, cores, descendants, free_port
from benchmarks.gateway.provider import running_provider
from benchmarks.gateway.report import Report
from benchmarks.gateway.stage import Stage

_CONNECTIONS = 64  # the kernel deals them out to the gateways by chance: few would be dealt unevenly


def compare_workers(stage: Stage, rounds: int, seconds: float, report: Report) -> None:
    """One core, then two, in turn."""
    everywhere = sorted(set.union(*cores()))
    if len(everywhere) < 2:
        return report.section("workers", "Two workers against one", [], ["skipped: there is one core"])
    with contextlib.ExitStack() as stack:
        providers = []
        for number, core in enumerate(everywhere[:2]):
            directory = stage.directory / f"provider-{number}"
            directory.mkdir()
            providers.append(
                replace(stage, upstream=stack.enter_context(running_provider(directory, {core})))
            )
        try:
            rows = _measure(stage, providers, everywhere[:2], rounds, seconds)
        except DidNotStartError as error:
            said = str(error).strip().splitlines()[-1]
            return report.section("workers", "Two workers against one", [], [f"skipped: {said}"])
    report.section("workers", "Two workers against one", rows, [_verdict(rows)])
    return None


def _verdict(rows: list[dict[str, Any]]) -> str:
    one, two = rows
    rate, per_cpu = (two[name] / one[name] for name in _REQUESTS)
    loops, loops_per_cpu = (two[name] / one[name] for name in _COMPUTING)
    return (
        f"Two do {rate:.2f} times as much as one; by their CPU per request {2 * per_cpu:.2f} are possible. "
        f"A loop of pure computation on each core does {loops:.2f}, by its CPU {2 * loops_per_cpu:.2f}. "
        "Each core carries a gateway, a load generator and a mock provider, and PostgreSQL what is left."
    )


_REQUESTS = ("requests/s", "requests / CPU s")
_COMPUTING = ("computing: loops/s", "loops / CPU s")


def _measure(
    stage: Stage, stages: list[Stage], there: list[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    seen: dict[int, list[tuple[float, ...]]] = {1: [], 2: []}
    for number in range(rounds):
        for count in (1, 2):
            on = there[:count]
            _move_postgres(stage, set(on))
            port = free_port()
            with contextlib.ExitStack() as stack:
                gateways = [
                    stack.enter_context(
                        our_gateway(each, name=f"worker-{number}-{count}-{core}", port=port, on={core})
                    )
                    for each, core in zip(stages, on, strict=False)
                ]
                _load(stage, port, on, 0.5)
                seen[count].append((*_one(stage, gateways, port, on, seconds), *_computing(on)))
    _move_postgres(stage, cores()[0])
    return [
        {"workers": count, **dict(zip((*_REQUESTS, *_COMPUTING), _medians(results), strict=True))}
        for count, results in seen.items()
    ]


def _medians(results: list[tuple[float, ...]]) -> list[float]:
    return [sorted(values)[len(values) // 2] for values in zip(*results, strict=True)]


def _move_postgres(stage: Stage, on: set[int]) -> None:
    """So that one core never works for two."""
    for pid in descendants(stage.postgres.pid) if stage.postgres.is_ours else ():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, on)


def _one(
    stage: Stage, gateways: list[Gateway], port: int, on: list[int], seconds: float
) -> tuple[float, float]:
    """Requests a second, and requests a second of the gateways' CPU."""
    for each in gateways:
        each.settle()
    before = [sum(each.cpu_us().values()) for each in gateways]
    loads = _load(stage, port, on, seconds)
    for each in gateways:
        each.settle()
    spent = sum(sum(each.cpu_us().values()) for each in gateways) - sum(before)
    return sum(load.rate for load in loads), sum(load.good for load in loads) / spent * 1e6


def _load(stage: Stage, port: int, on: list[int], seconds: float) -> list[Load]:
    """A load generator on each of these cores, at once."""
    command = stage.generator.command(Target(port), seconds, connections=_CONNECTIONS)

    return [must_be_good(read(output)) for output in _on_each(on, command)]


def _computing(on: list[int]) -> tuple[float, float]:
    """What the machine gives just now, to which nothing of ours is attached: loops a second, and of CPU."""
    seen = [json.loads(output) for output in _on_each(on, [sys.executable, "-c", _BUSY])]
    loops = sum(each["loops"] for each in seen)
    return sum(each["loops"] / each["wall"] for each in seen), loops / sum(each["cpu"] for each in seen)


_BUSY = """
import time, json
loops, cpu, began = 0, time.process_time(), time.perf_counter()
while time.perf_counter() < began + 0.5:
    sum(range(1000))
    loops += 1
print(json.dumps({"loops": loops, "wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}))
"""


def _on_each(on: list[int], command: list[str]) -> list[str]:
    """Run the same on several cores at once; what each printed."""

    def one(core: int) -> str:
        pinned = ["taskset", "-c", str(core), *command]
        return subprocess.run(pinned, capture_output=True, text=True, check=True).stdout

    with concurrent.futures.ThreadPoolExecutor(len(on)) as pool:
        return list(pool.map(one, on))
