"""Counts for Prometheus, written by hand: a counter on the request's path costs one dictionary step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(slots=True)
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BUCKETS) + 1))
    total: float = 0.0


class Metrics:
    """What one gateway process has seen since its start."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str, str], int] = {}
        self._latency: dict[str, _Histogram] = {}
        self._overhead: dict[str, _Histogram] = {}
        self._refused: dict[str, int] = {}
        self.shadow_dropped = 0

    def count_request(
        self, use_case: str, kind: str, arm: str, status: str, latency: float, overhead: float
    ) -> None:
        """One interaction has ended; times in seconds."""
        labels = (use_case, kind, arm, status)
        self._requests[labels] = self._requests.get(labels, 0) + 1
        _observe(self._latency, use_case, latency)
        _observe(self._overhead, use_case, overhead)

    def count_refusal(self, code: str) -> None:
        """A request was refused that no use case can be charged with."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def render(self, gauges: Iterable[tuple[str, str, float]]) -> bytes:
        """The exposition text; gauges as (name, help, value)."""
        lines = [
            "# HELP meta_agent_requests_total Interactions by use case, kind, arm and status.",
            "# TYPE meta_agent_requests_total counter",
        ]
        for (use_case, kind, arm, status), count in sorted(self._requests.items()):
            labels = _labels(use_case=use_case, kind=kind, arm=arm, status=status)
            lines.append(f"meta_agent_requests_total{labels} {count}")
        lines += _counter("meta_agent_refusals_total", "Requests refused before a use case was known.")
        lines += [f"meta_agent_refusals_total{_labels(code=code)} {n}" for code, n in self._refused.items()]
        lines += _counter("meta_agent_shadow_dropped_total", "Mirrored requests dropped for lack of room.")
        lines.append(f"meta_agent_shadow_dropped_total {self.shadow_dropped}")
        lines += _histograms("meta_agent_latency_seconds", "Whole time of a request.", self._latency)
        lines += _histograms(
            "meta_agent_overhead_seconds", "Time not spent waiting for a provider.", self._overhead
        )
        for name, text, value in gauges:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value:g}"]
        return ("\n".join(lines) + "\n").encode()


def _observe(histograms: dict[str, _Histogram], use_case: str, seconds: float) -> None:
    histogram = histograms.get(use_case)
    if histogram is None:
        histogram = histograms[use_case] = _Histogram()
    histogram.counts[bisect_left(_BUCKETS, seconds)] += 1
    histogram.total += seconds


def _counter(name: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} counter"]


def _histograms(name: str, text: str, histograms: dict[str, _Histogram]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    for use_case, histogram in sorted(histograms.items()):
        count = 0
        for bound, hits in zip((*_BUCKETS, None), histogram.counts, strict=True):
            count += hits
            labels = _labels(use_case=use_case, le="+Inf" if bound is None else f"{bound:g}")
            lines.append(f"{name}_bucket{labels} {count}")
        lines.append(f"{name}_sum{_labels(use_case=use_case)} {histogram.total:.6f}")
        lines.append(f"{name}_count{_labels(use_case=use_case)} {count}")
    return lines


def _labels(**labels: str) -> str:
    quoted = (f'{name}="{_escape(value)}"' for name, value in labels.items())
    return "{" + ",".join(quoted) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
