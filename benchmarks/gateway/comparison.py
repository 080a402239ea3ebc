"""The gateway beside its peers: each asked in turn, round after round, medians of all rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gateway.load import Generator, Load, Target, median, must_be_good, percentile
from benchmarks.gateway.participants import FOREIGN, Gateway, Participant
from benchmarks.gateway.processes import Memory, memory
from benchmarks.gateway.provider import CHUNKS
from benchmarks.gateway.report import Report
from benchmarks.gateway.stage import Stage

_CALM_SECONDS = 1.0
_STEADY_SHARE = 0.3  # of what somebody can do, at which his own delay is measured and not his queue


@dataclass(frozen=True)
class Effort:
    """How long it is measured."""

    rounds: int = 3
    seconds: int = 1  #: of each measurement
    paced_seconds: float = 2  #: of streams, each of which is one sample
    rate: float = 50  #: requests a second where delay is measured; fewer for those who cannot do that
    saturating: int = 16  #: connections
    streams: int = 64  #: each is paced by the provider: it takes more of them to keep a core busy


@dataclass
class Findings:
    """What was measured of one participant, a value a round."""

    who: Participant
    idle: Mapping[str, Memory]
    idle_us: Mapping[str, float]  #: CPU by part while nobody asked, a second
    plain_us: list[dict[str, float]] = field(default_factory=list)  #: CPU by part
    stream_us: list[dict[str, float]] = field(default_factory=list)
    paced_us: list[dict[str, float]] = field(default_factory=list)  #: streams too, few at a time
    plain_rate: list[float] = field(default_factory=list)
    stream_rate: list[float] = field(default_factory=list)
    postgres_us: list[float] = field(default_factory=list)
    first_us: list[int] = field(default_factory=list)  #: every request of every round
    latency_us: list[int] = field(default_factory=list)

    def paced_rate(self, wanted: float) -> float:
        """Slower for who would only queue."""
        return max(1.0, min(wanted, _STEADY_SHARE * self.stream_rate[0]))


def compare(stage: Stage, participants: Sequence[Participant], effort: Effort, report: Report) -> None:
    """All of them, with everything on."""
    time.sleep(_CALM_SECONDS)  # what they do after their start is not idling
    before = [who.cpu_us() for who in participants]
    time.sleep(_CALM_SECONDS)
    findings = [
        Findings(who, memory(who.pid) if who.pid else {}, _since(cpu, who.cpu_us()))
        for who, cpu in zip(participants, before, strict=True)
    ]
    for number in range(-1, effort.rounds):
        for each in findings:
            _warm_up(stage, each) if number < 0 else _measure(stage, each, effort)
    rows = [_row(each, findings[0]) for each in findings]
    report.section("comparison", "The gateway beside its peers", rows, _notes(findings, effort))
    if not isinstance(findings[-1].who, Gateway):
        return
    report.section("parts", "The gateway's processes", _parts(findings[-1]))


def _since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {part: (us - before.get(part, 0.0)) / _CALM_SECONDS for part, us in now.items()}


def _warm_up(stage: Stage, each: Findings) -> None:
    for stream in (False, True):
        must_be_good(stage.generator.run(Target(each.who.port, stream), 0.5))
    each.who.settle()


def _measure(stage: Stage, each: Findings, effort: Effort) -> None:
    generator, who = stage.generator, each.who
    before = stage.postgres.cpu_us()
    cost, plain = cpu_of(who, lambda: _saturate(generator, who, False, effort))
    each.postgres_us.append((stage.postgres.cpu_us() - before) / plain.good)
    each.plain_us.append(cost)
    each.plain_rate.append(plain.rate)
    cost, streams = cpu_of(who, lambda: _saturate(generator, who, True, effort))
    each.stream_us.append(cost)
    each.stream_rate.append(streams.rate)
    rate = each.paced_rate(effort.rate)
    cost, paced = cpu_of(who, lambda: generator.pace(Target(who.port, True), effort.paced_seconds, rate))
    each.paced_us.append(cost)
    each.first_us += paced.first_us
    each.latency_us += generator.pace(Target(who.port, False), effort.seconds, rate).latency_us
    who.settle()


def _saturate(generator: Generator, who: Participant, stream: bool, effort: Effort) -> Load:
    connections = effort.streams if stream else effort.saturating
    return generator.saturate(Target(who.port, stream), effort.seconds, connections)


def cpu_of(who: Participant, load: Callable[[], Load]) -> tuple[dict[str, float], Load]:
    """(microseconds of CPU per good answer by part, what the load saw), with all that follows of it."""
    who.settle()
    before = who.cpu_us()
    seen = load()
    who.settle()
    return {part: (us - before.get(part, 0.0)) / seen.good for part, us in who.cpu_us().items()}, seen


def _row(each: Findings, alone: Findings) -> dict[str, Any]:
    plain, stream = middle(each.plain_us), middle(each.stream_us)
    held = memory(each.who.pid) if each.who.pid else {}
    return {
        "through": each.who.name,
        "CPU µs / plain request": plain,
        f"CPU µs / {CHUNKS}-chunk stream": stream,
        "µs / chunk": None if plain is None or stream is None else (stream - plain) / CHUNKS,
        "CPU µs / stream, paced": middle(each.paced_us),
        "requests/s, one core": int(percentile([int(rate) for rate in each.plain_rate], 0.5)),
        "first token: + p50 ms": _added(each.first_us, alone.first_us, 0.5),
        "+ p99 ms": _added(each.first_us, alone.first_us, 0.99),
        "plain: + p50 ms": _added(each.latency_us, alone.latency_us, 0.5),
        "+ p99 ms ": _added(each.latency_us, alone.latency_us, 0.99),
        "idle RSS MB": _total(each.idle),
        "after load": _total(held),
    }


def middle(costs: Sequence[Mapping[str, float]]) -> float | None:
    """The median over rounds of all parts together."""
    sums = sorted(sum(cost.values()) for cost in costs if cost)
    return sums[len(sums) // 2] if sums else None


def _added(samples: list[int], alone: list[int], share: float) -> float:
    return (percentile(samples, share) - percentile(alone, share)) / 1000


def _total(held: Mapping[str, Memory]) -> float | None:
    return sum(each.rss for each in held.values()) if held else None


def _parts(ours: Findings) -> list[dict[str, Any]]:
    assert ours.who.pid
    held = memory(ours.who.pid)
    rows: list[dict[str, Any]] = [
        {
            "part": part,
            "CPU µs / plain request": middle([{part: cost.get(part, 0.0)} for cost in ours.plain_us]),
            f"CPU µs / {CHUNKS}-chunk stream": middle(
                [{part: cost.get(part, 0.0)} for cost in ours.stream_us]
            ),
            "idle CPU µs / s": ours.idle_us.get(part),
            "idle RSS MB": ours.idle[part].rss if part in ours.idle else None,
            "idle PSS MB": ours.idle[part].pss if part in ours.idle else None,
            "RSS after load": now.rss,
        }
        for part, now in held.items()
    ]
    postgres = sorted(ours.postgres_us)[len(ours.postgres_us) // 2]
    return [*rows, {"part": "PostgreSQL, counted nowhere above", "CPU µs / plain request": postgres} | _BLANK]


_BLANK = dict.fromkeys(
    (f"CPU µs / {CHUNKS}-chunk stream", "idle CPU µs / s", "idle RSS MB", "idle PSS MB", "RSS after load")
)


def _notes(findings: Sequence[Findings], effort: Effort) -> list[str]:
    alone = findings[0]
    notes = [
        f"Medians of {effort.rounds} interleaved rounds of {effort.seconds} s. "
        f"Paced: {effort.rate:.0f} streams a second. The provider alone then takes "
        f"{median(alone.first_us) / 1000:.2f} ms to its first token at p50, "
        f"{percentile(alone.first_us, 0.99) / 1000:.2f} at p99."
    ]
    for each in findings:
        if each.paced_rate(effort.rate) < effort.rate:
            rate, count = each.paced_rate(effort.rate), len(each.first_us)
            notes.append(f"{each.who.name}: delays at {rate:.1f} requests a second, {count} samples.")
    ours = findings[-1]
    for each in findings[1:-1]:
        mine, theirs = middle(ours.plain_us), middle(each.plain_us)
        if mine and theirs:
            ratio = f"{mine / theirs:.1f} times that" if mine > theirs else f"1/{theirs / mine:.0f}"
            notes.append(f"A plain request through the gateway takes {ratio} of {each.who.name}.")
    if isinstance(ours.who, Gateway):
        loaded = ", ".join(ours.who.foreign_modules()) or "none"
        notes.append(f"Of {', '.join(FOREIGN)} the worker has loaded: {loaded}.")
    return notes
