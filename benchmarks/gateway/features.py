"""What each feature of the gateway costs: by switching it off, and by looking where the time goes."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from signal import Signals
from typing import Any

from benchmarks.gateway.comparison import Effort, cpu_of
from benchmarks.gateway.fleet import FULL, VARIANTS, Variant
from benchmarks.gateway.load import Target
from benchmarks.gateway.participants import Gateway
from benchmarks.gateway.provider import CHUNKS
from benchmarks.gateway.report import Report
from benchmarks.gateway.stage import Stage

_NOISE_SHARE = 0.25  # of rounds on either side of what is printed as the spread


def compare_features(stage: Stage, gateway: Gateway, rounds: int, seconds: float, report: Report) -> None:
    """One gateway process, asked for each variant in turn; differences within a round."""
    costs: dict[Variant, list[float]] = collections.defaultdict(list)
    for number in range(-1, rounds):
        for variant in _rotated(number):
            cost = _cost(stage, gateway, variant, seconds)
            if number >= 0:  # the first round warms up
                costs[variant].append(cost)
    rows = [_row(variant, costs[variant], costs[FULL]) for variant in VARIANTS]
    title = "What features cost: CPU µs per plain request, switched off one at a time"
    report.section("features", title, rows, [f"Medians of {rounds} interleaved rounds of {seconds} s each."])


def _rotated(number: int) -> tuple[Variant, ...]:
    """Who comes first in a round differs, so that nobody always meets the warmest or coldest process."""
    first = number % len(VARIANTS)
    return VARIANTS[first:] + VARIANTS[:first]


def _cost(stage: Stage, gateway: Gateway, variant: Variant, seconds: float) -> float:
    target = Target(gateway.port, model=variant.name, key=variant.key)
    cost, _ = cpu_of(gateway, lambda: stage.generator.saturate(target, seconds))
    return sum(cost.values())


def _row(variant: Variant, costs: list[float], full: list[float]) -> dict[str, Any]:
    saved = [all_on - cost for all_on, cost in zip(full, costs, strict=True)]
    low, middle, high = (_at(saved, share) for share in (_NOISE_SHARE, 0.5, 1 - _NOISE_SHARE))
    return {
        "variant": variant.without,
        "CPU µs": _at(costs, 0.5),
        "saves µs": None if variant is FULL else middle,
        "quartiles": "" if variant is FULL else f"{low:.0f} to {high:.0f}",
    }


def _at(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def profile(stage: Stage, gateway: Gateway, seconds: float, report: Report) -> None:
    """The worker's time by module, sampled under load, as microseconds of a request."""
    for stream, name in ((False, "plain request"), (True, f"{CHUNKS}-chunk stream")):
        samples, cost = _sampled(stage, gateway, stream, seconds)
        note = (
            f"Sampled {sum(samples.values())} times. Time in C counts for its caller, and what "
            "the event loop does for the function that it calls next."
        )
        title = f"Where the worker's time goes: CPU µs per {name}"
        report.section(
            f"profile_{'stream' if stream else 'plain'}", title, list(_shares(samples, cost)), [note]
        )


def _sampled(stage: Stage, gateway: Gateway, stream: bool, seconds: float) -> tuple[dict[str, int], float]:
    """(samples by function, CPU of one request) of the worker at full load."""
    connections = Effort.streams if stream else Effort.saturating
    gateway.tell(Signals.SIGUSR1)
    cost, _ = cpu_of(
        gateway, lambda: stage.generator.saturate(Target(gateway.port, stream), seconds, connections)
    )
    return json.loads(gateway.note("samples.json", Signals.SIGUSR1)), cost["worker"]


def _shares(samples: dict[str, int], cost: float) -> Iterator[dict[str, Any]]:
    modules: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, count in samples.items():
        module, _, function = name.partition(":")
        modules[module][function] += count
    each = cost / sum(samples.values())
    for module, functions in sorted(modules.items(), key=lambda item: -item[1].total()):
        if (us := functions.total() * each) < cost / 200:
            continue
        top = ", ".join(f"{name} {count * each:.0f}" for name, count in functions.most_common(4) if name)
        yield {"module": module, "CPU µs": us, "mostly": top}
