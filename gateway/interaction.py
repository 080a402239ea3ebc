"""One call from its arrival to its line in the log: what was asked, who was drawn, how it ended.

Turns both into the row that ``storage.interactions`` stores. Writes nothing itself.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gateway.detector import Finding
from gateway.limits import Ticket
from gateway.tracing import Trace
from storage.clock import now
from storage.ids import new_id
from storage.routing import DeploymentSpec, Fallback, KeyRecord, Route, Serving
from storage.vocabulary import Arm, InteractionKind, InteractionStatus

#: Without usage from the provider a token is taken for this many characters, and the row says so.
CHARACTERS_PER_TOKEN = 4
PINNED = "pinned"
FALLBACK = "fallback"
DEFAULT_SERVING = Serving()


@dataclass(slots=True)
class Target:
    """Who answers a call: a deployment, by way of a release."""

    release_id: str
    deployment: DeploymentSpec
    arm: Arm | None  #: None for a pinned release and a fallback: they stand in no arm's evidence
    weight: float | None = None
    unit: str | None = None
    control: bool = False
    variant: str = ""  #: what callers are told; the arm's name if it has one

    def __post_init__(self) -> None:
        self.variant = self.variant or self.arm or PINNED


def fallback_target(fallback: Fallback) -> Target:
    """A release that answers in place of the one that was drawn. It stands in no arm's evidence."""
    return Target(fallback.release_id, fallback.deployment, None, variant=FALLBACK)


class Call:
    """One request of a client. What stands below the class is what holds until something else is known."""

    lost_seconds = 0.0  #: waited for deployments that failed
    model = ""  #: as the client wrote it
    use_case: str | None = None  #: once it is known to exist
    serving = DEFAULT_SERVING
    body: dict[str, Any] | None = None  #: the request in the gateway's own form, once it could be read
    user: str | None = None  #: as the application names that person; the log has a pseudonym
    conversation: str | None = None
    stream = False
    route: Route | None = None
    trace: Trace | None = None
    ticket: Ticket | None = None
    attempts = 0
    shadow_of: str | None = None
    fallback_of: str | None = None

    def __init__(
        self, key: KeyRecord, surface: str = "chat", kind: InteractionKind = InteractionKind.LIVE
    ) -> None:
        self.begin()
        self.key = key
        self.surface = surface
        self.kind = kind

    def begin(self) -> None:
        """Give it a name and a time."""
        self.id = new_id("int")
        self.at = now()
        self.started = time.perf_counter()

    def copy(self) -> Call:
        """One that can be told apart from this one by nothing but what is changed after."""
        return copy.copy(self)

    @property
    def elapsed(self) -> float:
        """Seconds since its arrival."""
        return time.perf_counter() - self.started

    def traced(self) -> dict[str, Any]:
        """What a log line says of it: ``extra`` for ``logging``."""
        trace = self.trace
        return {
            "request_id": self.id,
            "use_case": self.use_case,
            "trace_id": trace.trace_id if trace else None,
            "span_id": trace.span_id if trace else None,
        }

    def settle(self, now: float, bill: Bill | None) -> None:
        """Put right what was taken of its limits, now that it is known what it took."""
        if self.ticket is None:
            return
        if bill is None:
            self.ticket.settle(now, 0, 0)
        else:
            self.ticket.settle(now, bill.prompt_tokens + bill.completion_tokens, bill.cost_usd)


@dataclass(slots=True)
class Outcome:
    """How a call ended on one deployment, or before any."""

    status: InteractionStatus
    http_status: int
    text: str | None = None
    characters: int = 0  #: of everything that was answered, in all choices
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error_type: str | None = None
    error_message: str | None = None
    findings: list[Finding] = field(default_factory=list)
    ttft_seconds: float | None = None
    latency_seconds: float = 0.0
    overhead_seconds: float = 0.0  #: the part of it that no provider was waited for


@dataclass(frozen=True, slots=True)
class Bill:
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    cost_usd: Decimal


def bill(body: dict[str, Any], outcome: Outcome, deployment: DeploymentSpec) -> Bill:
    """Tokens as the provider counted them, else estimated, at the deployment's prices."""
    prompt, completion = _count(outcome.usage, "prompt_tokens"), _count(outcome.usage, "completion_tokens")
    estimated = prompt is None or completion is None
    if prompt is None or completion is None:
        prompt = prompt_characters(body) // CHARACTERS_PER_TOKEN
        completion = outcome.characters // CHARACTERS_PER_TOKEN
    cost = deployment.price_input * prompt + deployment.price_output * completion
    return Bill(prompt, completion, estimated, cost)


def _count(usage: dict[str, Any] | None, name: str) -> int | None:
    value = usage.get(name) if usage else None
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if is_count else None


def prompt_characters(body: dict[str, Any]) -> int:
    """The length of what a request says."""
    if "input" in body:
        return _content_length(body["input"])
    return sum(_content_length(message.get("content")) for message in body.get("messages", ()))


def _content_length(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return sum(len(text) for text in texts if isinstance(text, str))
    return 0


def row_of(call: Call, target: Target | None, outcome: Outcome, cost: Bill | None) -> dict[str, Any]:
    """The interaction as it is stored."""
    route, trace = call.route, call.trace
    in_arm = target is not None and target.arm is not None
    return {
        "id": call.id,
        "at": call.at,
        "kind": call.kind,
        "surface": call.surface,
        "use_case": call.use_case,
        "key_id": call.key.id,
        "route_revision": route.revision if route and in_arm else None,
        "rollout_id": route.rollout_id if route and in_arm else None,
        "arm": target.arm if target else None,
        "release_id": target.release_id if target else None,
        "deployment_id": target.deployment.id if target else None,
        "provider": target.deployment.provider if target else None,
        "model": target.deployment.model if target else None,
        "weight": target.weight if target else None,
        "unit": target.unit if target else None,
        "control": target.control if target else None,
        "user_id": call.user,
        "conversation_id": call.conversation,
        "stream": call.stream and call.shadow_of is None,
        "request": call.body,
        "response_text": outcome.text,
        "finish_reason": outcome.finish_reason,
        "status": outcome.status,
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "http_status": outcome.http_status,
        "attempts": call.attempts,
        "prompt_tokens": cost.prompt_tokens if cost else None,
        "completion_tokens": cost.completion_tokens if cost else None,
        "usage_estimated": bool(cost and cost.estimated),
        "cost_usd": str(cost.cost_usd) if cost else None,
        "latency_ms": _ms(outcome.latency_seconds),
        "ttft_ms": None if outcome.ttft_seconds is None else _ms(outcome.ttft_seconds),
        "overhead_ms": _ms(max(0.0, outcome.overhead_seconds)),
        "findings": [finding.as_dict() for finding in outcome.findings],
        "shadow_of": call.shadow_of,
        "fallback_of": call.fallback_of,
        "trace_id": trace.trace_id if trace else None,
        "span_id": trace.span_id if trace else None,
        "parent_span_id": trace.parent_id if trace else None,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
