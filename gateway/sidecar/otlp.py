"""The way to one OpenTelemetry collector: spans by the batch, histograms now and then.

Blocks: belongs on a thread. Loaded only where a collector is configured.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from gateway.settings import TelemetryConfig
from gateway.sidecar.spans import SCOPE, LoggedRow, common_attributes, provider_name, span_of

#: As the conventions want them.
_SECONDS = [0.01 * 2**step for step in range(14)]
_TOKENS = [float(4**step) for step in range(14)]


class Collector:
    """A collector, and the names by which this gateway is known there."""

    def __init__(self, config: TelemetryConfig, gateway_id: str, providers: Mapping[str, str]) -> None:
        # Their own words come with each attempt; ours come when something turns.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        base = config.endpoint.rstrip("/")
        headers, seconds = dict(config.headers), config.timeout_seconds
        self._providers = providers
        self._resource = Resource.create({"service.name": config.service, "service.instance.id": gateway_id})
        self._spans = OTLPSpanExporter(f"{base}/v1/traces", headers=headers, timeout=seconds)
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics", headers=headers, timeout=seconds),
            export_interval_millis=config.metrics_seconds * 1000,
            export_timeout_millis=seconds * 1000,
        )
        self._meters = MeterProvider([reader], self._resource, shutdown_on_exit=False)
        meter = self._meters.get_meter(SCOPE)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )

    def export(self, rows: Sequence[bytes]) -> int:
        """Send one span for each row; how many the collector took. Rows that are none are left out."""
        spans = []
        for document in rows:
            try:
                row = _ROW.decode(document)
                provider = provider_name(row.provider, self._providers) if row.provider else None
                spans.append(span_of(row, provider, self._resource))
            except (msgspec.DecodeError, ValueError, OverflowError):
                continue
            self._measure(row, provider)
        if not spans:
            return 0
        return len(spans) if self._spans.export(spans) is SpanExportResult.SUCCESS else 0

    def _measure(self, row: LoggedRow, provider: str | None) -> None:
        attributes = common_attributes(row, provider)
        if row.latency_ms is not None:
            self._duration.record(row.latency_ms / 1000, attributes)
        for kind, count in (("input", row.prompt_tokens), ("output", row.completion_tokens)):
            if count is not None:
                self._tokens.record(count, {**attributes, "gen_ai.token.type": kind})

    def close(self) -> None:
        """Send the last measurements and close the connection."""
        self._meters.shutdown()
        self._spans.shutdown()  # type: ignore[no-untyped-call]  # the exporter's authors left it untyped


_ROW = msgspec.json.Decoder(LoggedRow)
