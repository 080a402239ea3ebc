"""The facts that planners plan with: typed, and without a word that somebody else wrote.

Facts are numbers, enums, ids and times, so that a text somebody else wrote (a model's name, an error
message, a prompt) never reaches a planner. The few words meant for people carry :data:`FOR_PEOPLE`
and are left out of :meth:`FleetFacts.for_planner`. Knows nothing of where facts come from: see ``monitors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from policies.policy import Autonomy
from storage.digests import digest
from storage.vocabulary import EvaluationStatus, Phase, ProposalStatus, Risk, RolloutState

#: Marks a field whose words come from outside: shown to people, never to a planner.
FOR_PEOPLE: dict[str, Any] = {"for_people": True}


class Fact(BaseModel):
    """Something that was looked up."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFact(Fact):
    """How the scans of one source went; the name is the operator's."""

    name: str
    attempt_age_seconds: float | None
    success_age_seconds: float | None
    failing: bool
    offerings: int


class CatalogueFact(Fact):
    """What is known of the market."""

    sources: tuple[SourceFact, ...]
    newest_change_id: int
    newest_change_at: datetime | None


class HealthFact(Fact):
    """How a release did in a window."""

    requests: int
    units: int
    failures: int
    failure_rate: float | None
    p95_ms: float | None
    cost_usd: float


class AlertFact(Fact):
    """Proof beyond chance that the release harms, by the same monitor that policy asks."""

    units: int
    bad_units: int
    e_value: float


class StableFact(Fact):
    """The release that answers."""

    release_id: str
    offering_id: str | None
    label: str = Field(json_schema_extra=FOR_PEOPLE)  #: provider/model
    price_input_usd_per_million: float
    price_output_usd_per_million: float
    since: datetime
    retires_at: datetime | None
    rollback_release_id: str | None  #: what it replaced, when it came by a promotion
    recent: HealthFact  #: of the last minutes
    since_promotion: HealthFact
    baseline_failure_rate: float | None  #: of what it replaced, before it was replaced
    alert: AlertFact | None


class RolloutFact(Fact):
    """A rollout, under way or ended."""

    rollout_id: str
    release_id: str
    offering_id: str | None
    state: RolloutState
    step: int
    weight: float
    phase: Phase | None
    failed_metrics: tuple[str, ...]
    age_seconds: float  #: since it began, or since it ended if it has
    reason: str | None = Field(json_schema_extra=FOR_PEOPLE)


class CandidateFact(Fact):
    """One offering of the newest ranking."""

    offering_id: str
    position: int
    saving_share: float | None
    deployable: bool  #: measured here and passed, as the ranking lists it


class RankingFact(Fact):
    """The newest ranking of a use case."""

    ranking_id: str
    at: datetime
    candidates: tuple[CandidateFact, ...]


class EvaluationFact(Fact):
    """The newest evaluation of an offering against the release that is stable now."""

    evaluation_id: str
    offering_id: str | None
    release_id: str
    status: EvaluationStatus
    age_hours: float
    numbers: dict[str, float]  #: of its summary
    was_rolled_out: bool  #: the release has been in a rollout since


class OpenProposal(Fact):
    """Something that is asked for and not finished."""

    proposal_id: str
    tool: str
    use_case: str | None
    target: str | None
    status: ProposalStatus
    age_seconds: float


class Refusal(Fact):
    """Something that did not happen, and is not to be asked for again yet."""

    tool: str
    use_case: str | None
    target: str | None
    status: ProposalStatus
    age_seconds: float
    remaining_seconds: float  #: until it may be asked for again


class UseCaseFacts(Fact):
    """One named need and everything about it."""

    name: str
    risk: Risk
    autonomy: Autonomy
    stable: StableFact | None
    active_rollout: RolloutFact | None
    last_rollout: RolloutFact | None
    ranking: RankingFact | None
    ranking_is_current: bool
    evaluations: tuple[EvaluationFact, ...]
    deploy_cooldown_seconds: float  #: until policy lets the next rollout begin
    spend_month_usd: float
    budget_month_usd: float | None
    month_elapsed_share: float
    incidents: dict[str, int]  #: of the last hour, by severity
    max_evaluation_age_hours: float
    retirement_horizon_days: float


class FleetFacts(Fact):
    """The fleet at one moment."""

    at: datetime
    paused: bool
    autonomy: Autonomy
    scan_every_seconds: float
    min_saving_share: float
    retest_after_hours: float
    catalogue: CatalogueFact
    use_cases: tuple[UseCaseFacts, ...]
    open_proposals: tuple[OpenProposal, ...]
    refusals: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept with the cycle."""
        return self.model_dump(mode="json")

    def for_planner(self) -> dict[str, Any]:
        """The same without a word that somebody else wrote."""
        cleaned: dict[str, Any] = _without_words(self)
        return cleaned

    @property
    def digest(self) -> str:
        """Of everything but the moment: the same world has the same digest."""
        return digest({**self.to_json(), "at": None})

    def use_case(self, name: str) -> UseCaseFacts | None:
        """The facts of that use case."""
        return next((each for each in self.use_cases if each.name == name), None)


def _without_words(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            name: _without_words(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if field.json_schema_extra != FOR_PEOPLE
        }
    if isinstance(value, tuple):
        return [_without_words(each) for each in value]
    return value.isoformat() if isinstance(value, datetime) else value


def target_of(arguments: Mapping[str, Any]) -> str | None:
    """What a proposal is about, beside its use case."""
    for name in ("offering_id", "release_id", "rollout_id"):
        if name in arguments:
            return str(arguments[name])
    return None
