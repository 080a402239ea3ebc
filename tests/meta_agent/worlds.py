"""Facts as tests want them: a quiet fleet, and what differs from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from meta_agent.fleet_facts import (
    AlertFact,
    CandidateFact,
    CatalogueFact,
    EvaluationFact,
    FleetFacts,
    HealthFact,
    OpenProposal,
    RankingFact,
    Refusal,
    RolloutFact,
    SourceFact,
    StableFact,
    UseCaseFacts,
)
from policies.policy import Autonomy
from storage.vocabulary import EvaluationStatus, Phase, ProposalStatus, Risk, RolloutState

NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)
USE_CASE = "story-teller"


def health(requests: int = 0, failures: int = 0, units: int | None = None) -> HealthFact:
    return HealthFact(
        requests=requests,
        units=requests if units is None else units,
        failures=failures,
        failure_rate=failures / requests if requests else None,
        p95_ms=None,
        cost_usd=0.0,
    )


def stable(**changes: Any) -> StableFact:
    return StableFact(
        **{
            "release_id": "rel_stable",
            "offering_id": "off_stable",
            "label": "lab/big",
            "price_input_usd_per_million": 3.0,
            "price_output_usd_per_million": 15.0,
            "since": NOW - timedelta(days=2),
            "retires_at": None,
            "rollback_release_id": None,
            "recent": health(),
            "since_promotion": health(),
            "baseline_failure_rate": None,
            "alert": None,
            **changes,
        }
    )


ALERT = AlertFact(units=60, bad_units=30, e_value=1e6)


def degraded() -> StableFact:
    return stable(rollback_release_id="rel_before", recent=health(60, 30), alert=ALERT)


def ranking(*savings: float | None) -> RankingFact:
    return RankingFact(
        ranking_id="rank_1",
        at=NOW - timedelta(hours=1),
        candidates=tuple(
            CandidateFact(offering_id=f"off_{number}", position=number, saving_share=saving, deployable=False)
            for number, saving in enumerate(savings)
        ),
    )


def evaluation(offering: str = "off_0", **changes: Any) -> EvaluationFact:
    return EvaluationFact(
        **{
            "evaluation_id": f"eval_{offering}",
            "offering_id": offering,
            "release_id": f"rel_{offering}",
            "status": EvaluationStatus.PASSED,
            "age_hours": 1.0,
            "numbers": {"similarity": 0.99},
            "was_rolled_out": False,
            **changes,
        }
    )


def rollout(state: RolloutState = RolloutState.CANARY, age: float = 60.0) -> RolloutFact:
    return RolloutFact(
        rollout_id="ro_1",
        release_id="rel_off_0",
        offering_id="off_0",
        state=state,
        step=0,
        weight=0.1,
        phase=Phase.RUNNING,
        failed_metrics=(),
        age_seconds=age,
        reason=None,
    )


def use_case(**changes: Any) -> UseCaseFacts:
    return UseCaseFacts(
        **{
            "name": USE_CASE,
            "risk": Risk.MEDIUM,
            "autonomy": Autonomy.ACT_WITH_APPROVAL,
            "stable": stable(),
            "active_rollout": None,
            "last_rollout": None,
            "ranking": ranking(),
            "ranking_is_current": True,
            "evaluations": (),
            "deploy_cooldown_seconds": 0.0,
            "spend_month_usd": 0.0,
            "budget_month_usd": None,
            "month_elapsed_share": 0.5,
            "incidents": {},
            "max_evaluation_age_hours": 24.0,
            "retirement_horizon_days": 30.0,
            **changes,
        }
    )


def fleet_facts(*use_cases: UseCaseFacts, scan_age: float | None = 60.0, **changes: Any) -> FleetFacts:
    source = SourceFact(
        name="lab",
        attempt_age_seconds=scan_age,
        success_age_seconds=scan_age,
        failing=False,
        offerings=3,
    )
    return FleetFacts(
        **{
            "at": NOW,
            "paused": False,
            "autonomy": Autonomy.ACT_WITH_APPROVAL,
            "scan_every_seconds": 3600.0,
            "min_saving_share": 0.2,
            "retest_after_hours": 168.0,
            "catalogue": CatalogueFact(
                sources=() if scan_age is None else (source,), newest_change_id=7, newest_change_at=NOW
            ),
            "use_cases": use_cases,
            "open_proposals": (),
            "refusals": (),
            **changes,
        }
    )


def open_proposal(
    tool: str, target: str | None = None, status: ProposalStatus = ProposalStatus.EXECUTING
) -> OpenProposal:
    return OpenProposal(
        proposal_id="prop_1",
        tool=tool,
        use_case=None if tool == "scan" else USE_CASE,
        target=target,
        status=status,
        age_seconds=5.0,
    )


def refused(tool: str, target: str | None, status: ProposalStatus) -> Refusal:
    return Refusal(
        tool=tool,
        use_case=None if tool == "scan" else USE_CASE,
        target=target,
        status=status,
        age_seconds=5.0,
        remaining_seconds=100.0,
    )
