"""Spans and measurements as a collector receives them: real protobuf over real HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import opentelemetry.semconv._incubating.attributes.gen_ai_attributes as conventions
import opentelemetry.semconv._incubating.metrics.gen_ai_metrics as metric_conventions
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.journal import INTERACTION
from gateway.settings import ProviderConfig, TelemetryConfig
from gateway.sidecar.in_process import InProcessSidecar
from tests.gateway.sidecar.conftest import MakeLink, World, config_for, gauge, row, until, working

ROOT = Path(__file__).parents[3]
TRACE, SPAN, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
AT = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)

ANSWERED: dict[str, Any] = {
    "at": AT,
    "request": {"messages": [{"role": "user", "content": "the secret prompt"}]},
    "response_text": "the secret answer",
    "user_id": "the secret user",
    "provider": "lab",
    "model": "big",
    "release_id": "rel_1",
    "deployment_id": "dep_1",
    "arm": "candidate",
    "route_revision": 3,
    "rollout_id": "ro_1",
    "conversation_id": "conv_1",
    "surface": "chat",
    "stream": True,
    "finish_reason": "stop",
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "cost_usd": "0.0125",
    "latency_ms": 1500.0,
    "ttft_ms": 250.0,
    "overhead_ms": 0.4,
    "trace_id": TRACE,
    "span_id": SPAN,
    "parent_span_id": PARENT,
}
FAILED: dict[str, Any] = {
    **ANSWERED,
    "status": "error",
    "error_type": "upstream_timeout",
    "error_message": "the secret words of a provider",
    "finish_reason": None,
    "response_text": None,
    "arm": None,
    "trace_id": None,
    "span_id": None,
    "parent_span_id": None,
}


@dataclass
class Collector:
    """Takes what is exported to it, and answers as it is told."""

    url: str = ""
    status: int = 200
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def take(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        if path == "/v1/traces":
            self.traces.append(ExportTraceServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            self.metrics.append(ExportMetricsServiceRequest.FromString(body))


@pytest.fixture
def collector() -> Iterator[Collector]:
    state = Collector()
    state.release.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.keys.add(self.headers["x-key"])
            state.release.wait(30)
            if state.status == 200:
                state.take(self.path, body)
            self.send_response(state.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/"
        yield state
        state.release.set()
        server.shutdown()
        thread.join()


def _config(world: World, spool: Path, collector: Collector, **more: Any) -> Any:
    lab = ProviderConfig(name="lab", kind="openai", base_url="http://127.0.0.1:9/v1")
    telemetry = TelemetryConfig(
        endpoint=collector.url, headers={"x-key": "k1"}, timeout_seconds=1.0, metrics_seconds=0.2
    )
    return config_for(spool, world.db.url, providers={"lab": lab}, telemetry=telemetry, **more)


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return getattr(value, str(kind))


def _attributes(holder: Any) -> dict[str, Any]:
    return {each.key: _plain(each.value) for each in holder.attributes}


async def test_each_interaction_is_a_span_by_the_current_conventions(
    world: World, make_link: MakeLink, collector: Collector, tmp_path: Path
) -> None:
    async with working(_config(world, tmp_path, collector), make_link(world.db)) as office:
        office.journal.record(INTERACTION, row(**ANSWERED))
        office.journal.record(INTERACTION, row(**FAILED))
        await until(lambda: len(collector.spans) == 2)
        await until(lambda: gauge(office, "telemetry_exported") == 2)
    assert collector.keys == {"k1"}
    resource = _attributes(collector.traces[0].resource_spans[0].resource)
    assert (resource["service.name"], resource["service.instance.id"]) == ("meta-agent-gateway", "gw-test")
    answered, failed = sorted(collector.spans, key=lambda span: span.status.code)
    assert (answered.trace_id.hex(), answered.span_id.hex()) == (TRACE, SPAN)
    assert answered.parent_span_id.hex() == PARENT
    assert (answered.name, answered.kind) == ("chat big", Span.SPAN_KIND_CLIENT)
    start = int(AT.timestamp() * 1000) * 1_000_000
    assert (answered.start_time_unix_nano, answered.end_time_unix_nano) == (start, start + 1_500_000_000)
    told = _attributes(answered)
    told.pop("meta_agent.interaction")
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "big",
        "gen_ai.response.model": "big",
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.conversation.id": "conv_1",
        "meta_agent.use_case": "story-teller",
        "meta_agent.kind": "live",
        "meta_agent.status": "ok",
        "meta_agent.arm": "candidate",
        "meta_agent.release": "rel_1",
        "meta_agent.deployment": "dep_1",
        "meta_agent.route_revision": 3,
        "meta_agent.rollout": "ro_1",
        "meta_agent.surface": "chat",
        "meta_agent.cost_usd": 0.0125,
        "meta_agent.overhead_ms": 0.4,
    }
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert _attributes(failed)["error.type"] == "upstream_timeout"
    assert len(failed.trace_id) == 16
    assert failed.parent_span_id == b""
    assert not any(b"secret" in body for body in collector.bodies)


async def test_durations_and_tokens_are_measured(world: World, collector: Collector, tmp_path: Path) -> None:
    async with working(_config(world, tmp_path, collector), InProcessSidecar(world.db)) as office:
        for _ in range(3):
            office.journal.record(INTERACTION, row(**ANSWERED))
        await until(lambda: len(collector.spans) == 3)
    # At the end the last measurements are sent, whenever the next were due.
    scopes = [
        scope for resource in collector.metrics[-1].resource_metrics for scope in resource.scope_metrics
    ]
    metrics = {metric.name: metric for scope in scopes for metric in scope.metrics}
    assert set(metrics) == {
        metric_conventions.GEN_AI_CLIENT_OPERATION_DURATION,
        metric_conventions.GEN_AI_CLIENT_TOKEN_USAGE,
    }
    (duration,) = metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert (duration.count, duration.sum) == (3, 4.5)
    tokens = {
        _attributes(point)["gen_ai.token.type"]: point.sum
        for point in metrics["gen_ai.client.token.usage"].histogram.data_points
    }
    assert tokens == {"input": 33, "output": 21}


def test_every_name_of_theirs_is_one_that_they_know() -> None:
    source = (ROOT / "gateway" / "sidecar" / "spans.py").read_text()
    known = {value for name, value in vars(conventions).items() if name.startswith("GEN_AI_")}
    ours = {word for word in source.replace('"', " ").replace(":", " ").split() if word.startswith("gen_ai.")}
    assert len(ours) > 8
    assert ours <= known
    gone = {
        conventions.GEN_AI_SYSTEM,
        conventions.GEN_AI_USAGE_PROMPT_TOKENS,
        conventions.GEN_AI_USAGE_COMPLETION_TOKENS,
    }
    assert not ours & gone
    provider_names = {each.value for each in conventions.GenAiProviderNameValues}
    from gateway.sidecar.spans import _WELL_KNOWN

    assert set(_WELL_KNOWN.values()) <= provider_names


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "away", "nonsense"])
async def test_a_collector_in_trouble_stops_no_shipping(
    world: World, collector: Collector, tmp_path: Path, trouble: str
) -> None:
    if trouble == "refuses":
        collector.status = 400
    elif trouble == "hangs":
        collector.release.clear()
    elif trouble == "away":
        collector.url = "http://127.0.0.1:9"
    else:
        collector.url = "no address at all"
    config = _config(world, tmp_path, collector)
    async with working(config, InProcessSidecar(world.db)) as office:
        sent = [row(**ANSWERED) for _ in range(30)]
        for each in sent:
            office.journal.record(INTERACTION, each)
            await asyncio.sleep(0.003)

        async def stored() -> bool:
            return len(await world.ids()) == 30

        await until(stored)
        if trouble != "hangs":
            await until(lambda: gauge(office, "telemetry_not_exported") == 30)
        assert gauge(office, "telemetry_exported") == 0
        assert not office.readiness()["database_failing"]


async def test_a_row_that_makes_no_span_costs_no_other_one(
    world: World, collector: Collector, tmp_path: Path
) -> None:
    async with working(_config(world, tmp_path, collector), InProcessSidecar(world.db)) as office:
        office.journal.record(INTERACTION, row(**{**ANSWERED, "at": "2026-11-23"}))  # a date, to the database
        office.journal.record(INTERACTION, row(**{**ANSWERED, "trace_id": "not hex", "span_id": "zz"}))
        office.journal.record(INTERACTION, row(**ANSWERED))
        await until(lambda: len(collector.spans) == 2)
        await until(lambda: gauge(office, "telemetry_not_exported") == 1)


def test_a_sidecar_without_a_collector_loads_no_opentelemetry() -> None:
    program = (
        "import sys, gateway.sidecar.core, gateway.sidecar.__main__;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.strip() == "[]"
