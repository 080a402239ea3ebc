"""The shapes that the API answers with. Built from storage's rows; nothing here asks or decides."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

#: USD, exact, as plain digits: a client's parser may not know exponents.
Money = Annotated[Decimal, PlainSerializer(lambda value: f"{value.normalize():f}", str, when_used="json")]


class Read(BaseModel):
    """What is read may be built from any object with these attributes."""

    model_config = ConfigDict(from_attributes=True)


class UseCaseRead(Read):
    """A named need of an application."""

    name: str
    risk: str
    assignment_unit: str
    constraints: dict[str, Any]
    budget_usd_per_month: float | None
    rollout_plan: dict[str, Any]
    suite_digest: str | None
    serving: dict[str, Any] = Field(description="what differs from the defaults; releases by their ids")


class UsageRead(Read):
    """What a key or a use case has used today and in this month, in UTC. Refused requests do not count."""

    subject: str
    day: date
    day_requests: int
    day_tokens: int
    day_cost_usd: Money
    month_cost_usd: Money


class UseCaseUsage(Read):
    """What was used for a use case."""

    live: UsageRead
    shadow: UsageRead


class HealthRead(Read):
    """How a use case or a release did in a window of time."""

    requests: int
    units: int
    errors: int
    blocked: int
    failure_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    cost_usd: float
    prompt_tokens: float
    completion_tokens: float


class ServedRead(Read):
    """A release by what answers for it."""

    release_id: str
    provider: str
    model: str


class RolloutStepRead(Read):
    """One step of a rollout's plan and how far it got: done, current, failed, ahead or skipped."""

    label: str
    weight: float
    status: str
    needed: int | None = None  #: units (pairs in the shadow) before the step may succeed
    seen: int | None = None


class RolloutRead(Read):
    """The durable progression of a candidate."""

    id: str
    use_case: str
    state: str
    step: int
    weight: float
    epoch: int
    plan: dict[str, Any]
    analysis: dict[str, Any]
    reason: str | None
    requested: str | None
    resume_state: str | None
    proposal_id: str | None
    candidate: ServedRead
    stable: ServedRead
    steps: list[RolloutStepRead]
    created_at: datetime
    step_started_at: datetime | None
    ended_at: datetime | None


class MeasurementRead(Read):
    """What the analysis said at one moment."""

    id: int
    rollout_id: str
    at: datetime
    state: str
    step: int
    weight: float
    phase: str
    metrics: list[dict[str, Any]]


class ArmRead(Read):
    """One arm of a route."""

    arm: str
    weight: float
    release_id: str
    provider: str | None
    model: str | None


class RouteRead(Read):
    """One revision of who answers for a use case."""

    use_case: str
    version: int
    revision: int
    assignment_unit: str
    rollout_id: str | None
    arms: list[ArmRead]
    reason: str
    created_by: str
    created_at: datetime


class RouteAnswer(Read):
    """The current route and the revisions before it, newest first."""

    current: RouteRead | None
    history: list[RouteRead]


class FleetRow(Read):
    """A use case at a glance."""

    use_case: str
    risk: str
    condition: str = Field(description="healthy, degraded, failing or idle, by the last hour's failure rate")
    stable: ServedRead | None
    health: HealthRead
    spend_month_usd: float
    budget_usd_per_month: float | None
    rollout: RolloutRead | None


class Totals(Read):
    """The whole fleet in the last hour, and its spend this month."""

    requests: int
    failure_rate: float | None
    blocked: int
    p95_ms: float | None
    spend_hour_usd: float
    spend_month_usd: float
    budget_usd_per_month: float | None
    incidents_day: int
    approvals_waiting: int


class FleetRead(Read):
    """The overview."""

    rows: list[FleetRow]
    totals: Totals


class OfferingRead(Read):
    """A model as one source offers it. Prices are USD per token; null is unknown, never free."""

    id: str
    source: str
    external_id: str
    provider: str
    model: str
    reachable: bool
    price_input: Money | None
    price_output: Money | None
    context_tokens: int | None
    output_tokens: int | None
    capabilities: list[str]
    lifecycle: str
    retires_at: datetime | None
    first_seen_at: datetime
    last_seen_at: datetime
    scans_missed: int


class OfferingChangeRead(Read):
    """One event in the life of an offering."""

    id: int
    offering_id: str
    at: datetime
    kind: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class SourceRead(Read):
    """Where models are discovered, and how the last scan of it went."""

    name: str
    kind: str
    last_attempt_at: datetime | None
    last_success_at: datetime | None
    last_error: str | None
    offerings: int


class RankingRead(Read):
    """The candidates of a use case, best first, and why the others were excluded."""

    id: str
    use_case: str
    at: datetime
    stable_offering: str | None
    profile: dict[str, Any]
    candidates: list[dict[str, Any]]
    excluded: dict[str, Any]


class DeploymentRead(Read):
    """Something that can answer."""

    id: str
    digest: str
    provider: str
    model: str
    parameters: dict[str, Any]
    system_prompt: str | None
    guard_profile: str
    offering_id: str | None
    price_input: Money
    price_output: Money


class ReleaseRead(Read):
    """What a use case can be served by."""

    id: str
    use_case: str
    deployment_id: str
    evaluation_id: str | None
    created_by: str
    note: str | None
    created_at: datetime
    was_stable: bool
    provider: str
    model: str
    offering_id: str | None
    price_input: Money
    price_output: Money


class EvaluationRead(Read):
    """A candidate against the stable release."""

    id: str
    use_case: str
    candidate_release_id: str
    stable_release_id: str
    offering_id: str | None
    proposal_id: str | None
    suite_digest: str
    status: str
    cases_planned: int
    cases_done: int
    summary: dict[str, Any] | None
    reason: str | None
    created_at: datetime
    ended_at: datetime | None


class EvaluationCaseRead(Read):
    """One case and what both made of it."""

    id: str
    case_id: str
    origin: str
    messages: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    stable_text: str | None
    candidate_text: str | None
    stable_result: dict[str, Any] | None
    candidate_result: dict[str, Any] | None
    agrees: bool | None
    lexical_similarity: float | None
    stable_latency_ms: float | None
    candidate_latency_ms: float | None
    stable_cost_usd: Money | None
    candidate_cost_usd: Money | None


class EvaluationDetail(EvaluationRead):
    """An evaluation with its cases, worst first."""

    cases: list[EvaluationCaseRead]


class InteractionRead(Read):
    """One logged request and response."""

    id: str
    at: datetime
    kind: str
    use_case: str
    route_revision: int | None
    rollout_id: str | None
    arm: str | None
    release_id: str | None
    deployment_id: str | None
    unit: str | None
    conversation_id: str | None
    stream: bool
    response_text: str | None
    finish_reason: str | None
    status: str
    error_type: str | None
    error_message: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: Money | None
    latency_ms: float | None
    ttft_ms: float | None
    findings: list[dict[str, Any]] | None


class IncidentRead(Read):
    """A finding with the intervention taken."""

    id: str
    at: datetime
    use_case: str
    release_id: str | None
    rollout_id: str | None
    interaction_id: str | None
    category: str
    severity: str
    summary: str
    intervention: str
    details: dict[str, Any]


class CycleRead(Read):
    """One turn of the agent."""

    id: str
    started_at: datetime
    ended_at: datetime | None
    trigger: str
    planner: str | None
    signals: list[dict[str, Any]] | None
    summary: str | None
    error: str | None


class DecisionRead(Read):
    """Signal, alternatives, action, prediction and, later, what really happened."""

    id: str
    cycle_id: str | None
    proposal_id: str | None
    use_case: str | None
    at: datetime
    actor: str
    signals: list[dict[str, Any]]
    alternatives: list[dict[str, Any]]
    action: dict[str, Any] | None
    reason: str
    prediction: dict[str, Any] | None
    verdict: dict[str, Any] | None
    outcome: dict[str, Any] | None
    outcome_at: datetime | None


class AuditRead(Read):
    """One link of the audit's chain; ``data`` is the very text that the hash covers."""

    sequence: int
    at: datetime
    actor: str
    event: str
    subject: str
    data: str
    previous_hash: str
    hash: str


class VerificationRead(Read):
    """What a walk along the audit's chain found."""

    intact: bool
    rows: int
    broken_at: int | None
    why: str | None


class ApprovalRead(Read):
    """A person's word on one exact proposal."""

    id: str
    approver: str
    role: str
    word: str
    comment: str | None
    at: datetime


class ProposalRead(Read):
    """What somebody wants done."""

    id: str
    tool: str
    arguments: dict[str, Any]
    arguments_digest: str
    use_case: str | None
    proposer: str
    cycle_id: str | None
    reason: str
    status: str
    verdict: dict[str, Any] | None
    policy_digest: str | None
    state_digest: str | None
    run_id: str | None
    outcome: dict[str, Any] | None
    error: str | None
    created_at: datetime
    waiting_since: datetime | None
    expires_at: datetime
    ended_at: datetime | None


class WaitingRead(ProposalRead):
    """A proposal in the approval queue, with the words spoken so far."""

    binding_digest: str = Field(description="what a word binds: tool, arguments, judged state and policy")
    approvals: list[ApprovalRead]
    approvals_needed: int
    roles: list[str]


class AgentRead(Read):
    """What the agent did and will do next."""

    paused: bool
    paused_by: str | None
    paused_at: datetime | None
    planner: str
    model: str | None
    autonomy: str
    interval_seconds: float
    last_cycles: list[CycleRead]
    next_cycle_at: datetime | None
    next: list[str] = Field(description="what is under way or due, one sentence each")


class KeyRead(Read):
    """What is known of a key, never its secret."""

    id: str
    name: str
    scopes: list[str]
    use_cases: list[str] | None
    acts_as: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    limits: dict[str, Any] = Field(description="what is absent is not limited")
    previous_until: datetime | None = Field(
        description="until when the secret before the last rotation is taken"
    )


class KeyCreated(KeyRead):
    """A new key with its secret, which is shown this once."""

    key: str


class UserRead(Read):
    """An operator."""

    name: str
    role: str
    disabled_at: datetime | None


class UserCreated(UserRead):
    """A new operator."""

    password: str | None  #: shown once; null when the maker chose it


class ErasureRead(Read):
    """What was removed of a person, in rows. Incidents stay, without the link to what was said."""

    id: str
    complete: bool = Field(description="false: there is more; ask again")
    interactions: int
    feedback: int
    incidents: int
    evaluation_cases: int


class EventRead(Read):
    """Something that happened."""

    id: int
    at: datetime
    kind: str
    subject: str
    data: dict[str, Any]
