"""What whoever runs a gateway can see of it: metrics, traces from end to end, and lines for machines."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.logs import JsonFormatter
from gateway.settings import TelemetryConfig
from tests.gateway.conftest import USE_CASE, Fleet, Running, config_for, lab, serving, until
from tests.gateway.sidecar.test_telemetry import Collector, collector  # noqa: F401  # a fixture
from tests.gateway.stories import BODY, COST, MoodyUpstream, metric, rows_of, serve_by

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
async def upstream() -> AsyncIterator[MoodyUpstream]:
    async with MoodyUpstream().running() as server:
        assert isinstance(server, MoodyUpstream)
        yield server


# -- metrics

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*)?)\}})? (\S+)")
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")

Series = dict[tuple[str, str], float]


def parsed(text: str) -> Series:
    """The exposition text, read as strictly as its specification allows; by (name, labels)."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    closed: set[str] = set()
    family = ""
    samples: Series = {}
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in helped, f"two helps for {name}"
            helped.add(name)
            closed.add(family)
            family = name
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert name not in kinds
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, f"no sample: {line!r}"
        name, labels, value = match.groups()
        base = name if kinds.get(name) else _SUFFIX.sub("", name)
        assert base == family, f"{name} stands outside its family"
        assert base not in closed
        assert (base == name) == (kinds[base] != "histogram")
        assert (name, labels or "") not in samples, f"{line} twice"
        samples[name, labels or ""] = float(value)
        if kinds[base] == "counter":
            assert name.endswith("_total")
            assert float(value) >= 0
    return samples


def _histograms(samples: Series) -> Iterator[tuple[list[tuple[float, float]], float]]:
    """(cumulative buckets, count) of each histogram."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (name, labels), value in samples.items():
        if name.endswith("_bucket"):
            rest, _, bound = labels.rpartition("le=")
            bounds = found.setdefault((name.removesuffix("_bucket"), rest.rstrip(",")), [])
            bounds.append((float(bound.strip('"')), value))
    for (name, labels), buckets in found.items():
        assert (f"{name}_sum", labels) in samples
        yield buckets, samples[f"{name}_count", labels]


async def test_metrics_are_what_prometheus_reads(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    shadow, failing = await fleet.release("say:copy"), await fleet.release("status:500")
    fallback = await fleet.release('say:"odd"\\name')
    await gateway.serves(await fleet.route(failing, shadow=(shadow, 1.0)))
    await serve_by(
        gateway, fleet, fallbacks=[fallback], limits={"usd_per_day": COST / 2, "over_budget": "alert"}
    )
    for streamed in (False, True, False):
        assert (await gateway.post({**BODY, "stream": streamed})).status_code == 200
    await gateway.post({"model": 'no "such"\nthing\\', "messages": []})
    await gateway.post(BODY, token="nonsense")
    response = await gateway.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = parsed(response.text)
    histograms = list(_histograms(samples))
    assert histograms
    for buckets, count in histograms:
        assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert buckets[-1] == (math.inf, count)
    names = {name for name, _ in samples}
    assert {
        "meta_agent_requests_total",
        "meta_agent_refusals_total",
        "meta_agent_fallbacks_total",
        "meta_agent_over_budget_total",
        "meta_agent_tokens_total",
        "meta_agent_cost_usd_total",
        "meta_agent_latency_seconds_bucket",
        "meta_agent_first_token_seconds_bucket",
        "meta_agent_overhead_seconds_bucket",
        "meta_agent_breaker_open",
        "meta_agent_journal_lost",
        "meta_agent_routes_version",
    } <= names
    answered = [value for (name, labels), value in samples.items() if 'variant="fallback"' in labels]
    assert sum(answered) == 3
    assert await metric(gateway, "meta_agent_cost_usd_total", use_case=USE_CASE) == pytest.approx(3 * COST)


async def test_a_shadow_is_no_part_of_what_callers_waited(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    stable, shadow = await fleet.release("echo"), await fleet.release("sleep:0.3")
    await gateway.serves(await fleet.route(stable, shadow=(shadow, 1.0)))
    answer = await gateway.post(BODY)
    await rows_of(fleet, 2)
    assert await metric(gateway, "meta_agent_latency_seconds_count", use_case=USE_CASE) == 1
    overhead = await metric(gateway, "meta_agent_overhead_seconds_sum", use_case=USE_CASE)
    told = float(answer.headers["x-meta-agent-overhead-ms"]) / 1000
    assert overhead == pytest.approx(told, abs=0.00001), "the caller and the metrics are told the same"


# -- traces


def _traceparents(upstream: MoodyUpstream) -> list[str]:
    found = [re.search(r"^traceparent: (.*?)\r?$", head, re.M | re.I) for head in upstream.heads]
    return [each[1] if each else "" for each in found]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_trace_goes_through(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    response = await gateway.post({**BODY, "stream": streamed}, headers={"traceparent": TRACEPARENT})
    (row,) = await rows_of(fleet, 1, f"id = '{response.headers['x-request-id']}'")
    assert (row["trace_id"], row["parent_span_id"]) == (TRACE, SPAN)
    assert re.fullmatch("[0-9a-f]{16}", row["span_id"])
    assert row["span_id"] != SPAN
    assert _traceparents(upstream) == [f"00-{TRACE}-{row['span_id']}-01"]


NO_TRACE = ["", "nonsense", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"]


async def test_what_is_no_trace_is_none(gateway: Running, fleet: Fleet, upstream: MoodyUpstream) -> None:
    for header in NO_TRACE:
        assert (await gateway.post(BODY, headers={"traceparent": header})).status_code == 200
    assert {row["trace_id"] for row in await rows_of(fleet, len(NO_TRACE))} == {None}
    assert set(_traceparents(upstream)) == {""}


async def test_each_row_of_a_call_is_a_span_of_its_own(
    fleet: Fleet,
    upstream: MoodyUpstream,
    tmp_path: Path,
    collector: Collector,  # noqa: F811
) -> None:
    token = await fleet.key()
    telemetry = TelemetryConfig(endpoint=collector.url)
    config = config_for(tmp_path, {"lab": lab(upstream.base_url)}, telemetry=telemetry)
    stable, failing = await fleet.release("echo"), await fleet.release("status:500")
    async with serving(config, fleet.db, token) as gateway:
        await gateway.serves(await fleet.route(stable, (failing, 1.0)))
        await gateway.post(BODY, headers={"traceparent": TRACEPARENT})
        await gateway.serves(await fleet.route(stable, shadow=(stable, 1.0)))
        await gateway.post(BODY)

        async def exported() -> bool:
            return len(collector.spans) == 4

        await until(exported)
    rows = {row["span_id"]: row for row in await rows_of(fleet, 4)}
    assert {span.span_id.hex() for span in collector.spans} == set(rows)
    assert len(rows) == 4
    shadow = next(row for row in rows.values() if row["kind"] == "shadow")
    live = next(row for row in rows.values() if row["id"] == shadow["shadow_of"])
    failed = next(row for row in rows.values() if row["status"] == "error")
    answered = next(row for row in rows.values() if row["fallback_of"] == failed["id"])
    assert (shadow["parent_span_id"], shadow["trace_id"]) == (live["span_id"], live["trace_id"])
    assert (failed["parent_span_id"], failed["trace_id"]) == (answered["span_id"], TRACE)
    assert (answered["parent_span_id"], live["parent_span_id"]) == (SPAN, None)


# -- log lines


async def test_log_lines_for_machines_name_request_and_trace(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("gateway")
    logger.addHandler(handler)
    try:
        failing = await fleet.release("status:500")
        await gateway.serves(await fleet.route(failing))
        await serve_by(gateway, fleet, fallbacks=[await fleet.release("echo")])
        response = await gateway.post(BODY, headers={"traceparent": TRACEPARENT})
    finally:
        logger.removeHandler(handler)
    assert response.status_code == 200
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (line,) = [line for line in lines if line.get("trace_id") == TRACE]
    assert (line["level"], line["request_id"]) == ("warning", response.headers["x-request-id"])
    assert line["use_case"] == USE_CASE
    assert line["error"] == "upstream_status_500"
    assert line["time"]
