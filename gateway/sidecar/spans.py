"""Turns rows of the log into spans by OpenTelemetry's conventions for generative AI.

Attributes only say who, when and how much: no prompt, no answer, no message of an error, no user. The
names are spelled out here, since the package that lists them has deprecated all of them there for having
moved; a test holds them against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from storage.vocabulary import InteractionStatus

SCOPE = "meta_agent.gateway"
_NEW_ID = RandomIdGenerator()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
#: Kinds of providers that the conventions have a name of their own for.
_WELL_KNOWN = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}
#: Kinds that say how a provider is spoken to and not who it is: its own name says more.
_NAMELESS = frozenset({"openai_compatible", "litellm"})
_FAILED = frozenset({InteractionStatus.ERROR, InteractionStatus.BLOCKED, InteractionStatus.REJECTED})


class LoggedRow(msgspec.Struct, frozen=True):
    """What a span tells of a row. Everything else in it is skipped and never held."""

    id: str
    at: datetime
    kind: str
    status: str
    use_case: str | None = None
    route_revision: int | None = None
    rollout_id: str | None = None
    arm: str | None = None
    release_id: str | None = None
    deployment_id: str | None = None
    provider: str | None = None
    model: str | None = None
    surface: str | None = None
    conversation_id: str | None = None
    stream: bool = False
    finish_reason: str | None = None
    error_type: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: str | float | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    overhead_ms: float | None = None
    attempts: int | None = None
    shadow_of: str | None = None
    fallback_of: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None

    @property
    def operation(self) -> str:
        """What was asked for, in the conventions' word."""
        return "embeddings" if self.surface == "embeddings" else "chat"

    @property
    def error(self) -> str | None:
        """What kind of failure it was; None: none."""
        return (self.error_type or self.status) if self.status in _FAILED else None


def provider_name(name: str, kinds: Mapping[str, str]) -> str:
    """A provider as the conventions call it, else as the gateway's configuration does."""
    kind = kinds.get(name, name)
    return _WELL_KNOWN.get(kind, name if kind in _NAMELESS else kind)


def span_of(row: LoggedRow, provider: str | None, resource: Resource) -> ReadableSpan:
    """The span of one interaction."""
    start = int(row.at.timestamp() * 1_000_000) * 1000
    trace = _number(row.trace_id) or _NEW_ID.generate_trace_id()
    parent = _number(row.parent_span_id)
    context = SpanContext(trace, _number(row.span_id) or _NEW_ID.generate_span_id(), False, _SAMPLED)
    return ReadableSpan(
        name=f"{row.operation} {row.model or row.use_case or ''}".rstrip(),
        context=context,
        parent=SpanContext(trace, parent, True, _SAMPLED) if parent else None,
        resource=resource,
        attributes=_attributes(row, provider),
        kind=SpanKind.CLIENT,
        status=Status(StatusCode.ERROR) if row.error else Status(StatusCode.UNSET),
        start_time=start,
        end_time=start + int((row.latency_ms or 0.0) * 1_000_000),
        instrumentation_scope=InstrumentationScope(SCOPE),
    )


def common_attributes(row: LoggedRow, provider: str | None) -> dict[str, Any]:
    """What a span and a measurement both say: few values each."""
    answered = row.status != InteractionStatus.REJECTED
    return _known(
        {
            "gen_ai.operation.name": row.operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": row.model,
            "gen_ai.response.model": row.model if answered and not row.error_type else None,
            "error.type": row.error,
            "meta_agent.use_case": row.use_case,
            "meta_agent.kind": row.kind,
            "meta_agent.arm": row.arm,
        }
    )


def _attributes(row: LoggedRow, provider: str | None) -> dict[str, Any]:
    told = {
        "gen_ai.request.stream": row.stream,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "gen_ai.response.finish_reasons": (row.finish_reason,) if row.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": row.ttft_ms / 1000 if row.stream and row.ttft_ms else None,
        "gen_ai.conversation.id": row.conversation_id,
        "meta_agent.interaction": row.id,
        "meta_agent.status": row.status,
        "meta_agent.release": row.release_id,
        "meta_agent.deployment": row.deployment_id,
        "meta_agent.route_revision": row.route_revision,
        "meta_agent.rollout": row.rollout_id,
        "meta_agent.surface": row.surface,
        "meta_agent.cost_usd": None if row.cost_usd is None else float(row.cost_usd),
        "meta_agent.overhead_ms": row.overhead_ms,
        "meta_agent.attempts": row.attempts,
        "meta_agent.shadow_of": row.shadow_of,
        "meta_agent.fallback_of": row.fallback_of,
    }
    return common_attributes(row, provider) | _known(told)


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _number(digits: str | None) -> int:
    """A trace's or span's id; 0, which the specification calls invalid, for what is none."""
    try:
        return int(digits or "", 16)
    except ValueError:
        return 0
