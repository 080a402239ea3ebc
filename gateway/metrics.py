"""Counts for Prometheus, written by hand: a counter on the request's path costs one dictionary step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.interaction import Bill, Call, Outcome, Target
from storage.vocabulary import InteractionKind

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)

#: (name, help, value) of what is read off elsewhere when somebody asks.
Gauge = tuple[str, str, float]


@dataclass(slots=True)
class _Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class _UseCase:
    """What is measured of one use case."""

    latency: _Histogram = field(default_factory=lambda: _Histogram(_SECONDS))
    first_token: _Histogram = field(default_factory=lambda: _Histogram(_SECONDS))
    overhead: _Histogram = field(default_factory=lambda: _Histogram(_OVERHEAD_SECONDS))
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class Metrics:
    """What one gateway process has seen since its start."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str, str, str], int] = {}
        self._use_cases: dict[str, _UseCase] = {}
        self._refused: dict[str, int] = {}
        self._shadow_dropped: dict[tuple[str, str], int] = {}
        self._fallbacks: dict[tuple[str, str], int] = {}
        self._over_budget: dict[tuple[str, str], int] = {}

    def count_request(self, call: Call, target: Target | None, outcome: Outcome, cost: Bill | None) -> None:
        """One interaction has ended."""
        name = call.use_case or ""
        variant = target.variant if target is not None else ""
        labels = (name, call.surface, call.kind, variant, outcome.status)
        self._requests[labels] = self._requests.get(labels, 0) + 1
        measured = self._use_cases.get(name)
        if measured is None:
            measured = self._use_cases[name] = _UseCase()
        if call.kind is not InteractionKind.SHADOW:  # nobody waited for it
            measured.latency.observe(outcome.latency_seconds)
            measured.overhead.observe(max(0.0, outcome.overhead_seconds))
        if outcome.ttft_seconds is not None:
            measured.first_token.observe(outcome.ttft_seconds)
        if cost is not None:
            measured.prompt_tokens += cost.prompt_tokens
            measured.completion_tokens += cost.completion_tokens
            measured.cost_usd += float(cost.cost_usd)

    def count_refusal(self, code: str) -> None:
        """A request was refused that no use case can be charged with."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def count_shadow_dropped(self, use_case: str, reason: str) -> None:
        """A request was not mirrored."""
        _add(self._shadow_dropped, (use_case, reason))

    def count_fallback(self, use_case: str, reason: str) -> None:
        """Another deployment was asked, because the one before could not answer."""
        _add(self._fallbacks, (use_case, reason))

    def count_over_budget(self, subject: str, period: str) -> None:
        """A call went on although a budget was spent."""
        _add(self._over_budget, (subject, period))

    def render(self, gauges: Iterable[Gauge], breakers: Mapping[str, str]) -> bytes:
        """The exposition text; breakers as (deployment, state)."""
        lines = _head("meta_agent_requests_total", "Interactions, by how they ended.", "counter")
        for (use_case, surface, kind, variant, status), count in sorted(self._requests.items()):
            labels = _labels(use_case=use_case, surface=surface, kind=kind, variant=variant, status=status)
            lines.append(f"meta_agent_requests_total{labels} {count}")
        lines += _head("meta_agent_refusals_total", "Requests refused, use case unknown.", "counter")
        lines += [f"meta_agent_refusals_total{_labels(code=code)} {n}" for code, n in self._refused.items()]
        lines += _pairs("meta_agent_shadow_dropped_total", "Requests not mirrored.", self._shadow_dropped)
        lines += _pairs("meta_agent_fallbacks_total", "Deployments given up for another.", self._fallbacks)
        lines += _pairs(
            "meta_agent_over_budget_total",
            "Calls that went on over a budget.",
            self._over_budget,
            ("subject", "period"),
        )
        lines += self._tokens_and_cost()
        for name, text, part in _HISTOGRAMS:
            lines += _histograms(
                name, text, {key: getattr(each, part) for key, each in self._use_cases.items()}
            )
        lines += _head("meta_agent_breaker_open", "1: the deployment is left alone for a while.", "gauge")
        for deployment, state in sorted(breakers.items()):
            labels = _labels(deployment=deployment, state=state)
            lines.append(f"meta_agent_breaker_open{labels} {int(state != 'closed')}")
        for name, text, value in gauges:
            lines += [*_head(name, text, "gauge"), f"{name} {value:g}"]
        return ("\n".join(lines) + "\n").encode()

    def _tokens_and_cost(self) -> list[str]:
        lines = _head("meta_agent_tokens_total", "Tokens, counted or estimated.", "counter")
        for name, each in sorted(self._use_cases.items()):
            for kind, tokens in (("prompt", each.prompt_tokens), ("completion", each.completion_tokens)):
                lines.append(f"meta_agent_tokens_total{_labels(use_case=name, type=kind)} {tokens}")
        lines += _head("meta_agent_cost_usd_total", "What answers cost.", "counter")
        for name, each in sorted(self._use_cases.items()):
            lines.append(f"meta_agent_cost_usd_total{_labels(use_case=name)} {each.cost_usd:.9f}")
        return lines


_HISTOGRAMS = (
    ("meta_agent_latency_seconds", "Whole time of a request.", "latency"),
    ("meta_agent_first_token_seconds", "Time to the first piece of a stream.", "first_token"),
    ("meta_agent_overhead_seconds", "Time not spent waiting for a provider.", "overhead"),
)


def _add(counts: dict[tuple[str, str], int], labels: tuple[str, str]) -> None:
    counts[labels] = counts.get(labels, 0) + 1


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _pairs(
    name: str,
    text: str,
    counts: dict[tuple[str, str], int],
    names: tuple[str, str] = ("use_case", "reason"),
) -> list[str]:
    lines = _head(name, text, "counter")
    for labels, count in sorted(counts.items()):
        lines.append(f"{name}{_labels(**dict(zip(names, labels, strict=True)))} {count}")
    return lines


def _histograms(name: str, text: str, histograms: dict[str, _Histogram]) -> list[str]:
    lines = _head(name, text, "histogram")
    for use_case, histogram in sorted(histograms.items()):
        count = 0
        for bound, hits in zip((*histogram.bounds, None), histogram.counts, strict=True):
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
