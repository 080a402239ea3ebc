"""Monitors: what the fleet looks like now, read from storage and from nowhere else.

Every number is counted or looked up here, in one pass; nothing is taken from whoever proposes. Knows
nothing of what the facts mean: see ``signals``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
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
    target_of,
)
from meta_agent.settings import Settings
from pipelines.rollout.health import find_alert
from policies.policy import Autonomy, Limits, Policy
from storage import deployments, evaluations, flags, interactions, proposals, registry, rollouts, routes
from storage import use_cases as use_case_rows
from storage.database import Connection, Database
from storage.deployments import ServedRelease
from storage.evaluations import Evaluation
from storage.interactions import Health
from storage.proposals import Proposal
from storage.rollouts import Rollout
from storage.routes import RouteRow
from storage.use_cases import UseCase
from storage.vocabulary import Arm, EvaluationStatus, Phase, ProposalStatus, Risk, RolloutState

HEALTH_WINDOW = timedelta(minutes=15)
BASELINE_WINDOW = timedelta(days=7)
INCIDENT_WINDOW = timedelta(hours=1)
#: How many candidates of a ranking are worth a planner's attention.
TOP_CANDIDATES = 30
_NEVER_AGAIN = timedelta(days=30)


async def observe(database: Database, settings: Settings, policy: Policy, now: datetime) -> FleetFacts:
    """Look at everything once, in one transaction's view of the world."""
    async with database.connection() as connection:
        catalogue = await _catalogue(connection, now)
        listed = await use_case_rows.list_all(connection)
        return FleetFacts(
            at=now,
            paused=bool(await flags.get(connection, flags.AGENT_PAUSED, False)),
            autonomy=Autonomy(settings.agent.autonomy),
            scan_every_seconds=settings.agent.scan_every_seconds,
            min_saving_share=settings.agent.min_saving_share,
            retest_after_hours=settings.agent.retest_after_hours,
            catalogue=catalogue,
            use_cases=tuple(
                [await _use_case(connection, each, settings, policy, catalogue, now) for each in listed]
            ),
            open_proposals=await _open_proposals(connection, now),
            refusals=await _refusals(connection, settings, policy, now),
        )


def _age(now: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, (now - moment).total_seconds())


async def _catalogue(connection: Connection, now: datetime) -> CatalogueFact:
    newest = await registry.changes(connection, limit=1)
    return CatalogueFact(
        sources=tuple(
            SourceFact(
                name=each.name,
                attempt_age_seconds=_age(now, each.last_attempt_at),
                success_age_seconds=_age(now, each.last_success_at),
                failing=each.last_error is not None,
                offerings=each.offerings,
            )
            for each in await registry.list_sources(connection)
        ),
        newest_change_id=newest[0].id if newest else 0,
        newest_change_at=newest[0].at if newest else None,
    )


async def _use_case(
    connection: Connection,
    use_case: UseCase,
    settings: Settings,
    policy: Policy,
    catalogue: CatalogueFact,
    now: datetime,
) -> UseCaseFacts:
    rules = policy.rules_for(use_case.name)
    limits = rules.limits
    history = await rollouts.list_rollouts(connection, use_case.name, limit=200)
    stable = await _stable(connection, use_case.name, now)
    ended = sorted((each for each in history if each.ended_at), key=lambda each: each.ended_at or now)
    active = next((each for each in history if each.ended_at is None), None)
    ranking = await _ranking(connection, use_case.name)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (month + timedelta(days=32)).replace(day=1)
    return UseCaseFacts(
        name=use_case.name,
        risk=Risk(use_case.risk),
        autonomy=min(rules.autonomy, Autonomy(settings.agent.autonomy), key=lambda level: level.rank),
        stable=stable,
        active_rollout=await _rollout(connection, active, now) if active else None,
        last_rollout=await _rollout(connection, ended[-1], now) if ended else None,
        ranking=ranking,
        ranking_is_current=_is_current(ranking, catalogue, stable),
        evaluations=await _evaluations(connection, use_case.name, stable, history, now),
        deploy_cooldown_seconds=_cooldown(ended, limits, now),
        spend_month_usd=float(await interactions.spend(connection, since=month, use_case=use_case.name)),
        budget_month_usd=use_case.budget_usd_per_month,
        month_elapsed_share=(now - month) / (following - month),
        incidents=dict(
            Counter(
                each.severity
                for each in await interactions.list_incidents(
                    connection, use_case.name, now - INCIDENT_WINDOW, limit=1000
                )
            )
        ),
        max_evaluation_age_hours=limits.max_evaluation_age_hours,
        retirement_horizon_days=limits.retirement_horizon_days,
    )


async def _stable(connection: Connection, use_case: str, now: datetime) -> StableFact | None:
    history = await routes.route_history(connection, use_case, limit=200)
    release_id = history[0].release_of(Arm.STABLE) if history else None
    release = await deployments.find_release(connection, release_id) if release_id else None
    if release is None:
        return None
    since, target = _succession(history)
    offering = (
        await registry.find_offering(connection, release.offering_id)
        if release.offering_id
        else await registry.find_by_model(connection, release.provider, release.model)
    )
    return StableFact(
        release_id=release.id,
        offering_id=offering.id if offering else None,
        label=f"{release.provider}/{release.model}",
        price_input_usd_per_million=float(release.price_input * 1_000_000),
        price_output_usd_per_million=float(release.price_output * 1_000_000),
        since=since,
        retires_at=offering.retires_at if offering else None,
        rollback_release_id=target,
        recent=await _health(connection, release, max(since, now - HEALTH_WINDOW)),
        since_promotion=await _health(connection, release, since),
        baseline_failure_rate=await _baseline(connection, use_case, target, since),
        alert=await _alert(connection, release, now),
    )


def _succession(history: Sequence[RouteRow]) -> tuple[datetime, str | None]:
    """Since when the stable release stands, and which one it replaced by a promotion.

    Newest revision first. A release that comes back after it was replaced came by a rollback: then what
    it replaced is the bad one, and there is nothing to go back to.
    """
    stable = history[0].release_of(Arm.STABLE)
    since, previous, older = history[0].created_at, None, set[str | None]()
    for row in history:
        each = row.release_of(Arm.STABLE)
        if previous is not None:
            older.add(each)
        elif each == stable:
            since = row.created_at
        else:
            previous = each
    return since, None if stable in older else previous


async def _alert(connection: Connection, release: ServedRelease, now: datetime) -> AlertFact | None:
    found = await find_alert(connection, release.use_case, release.id, now)
    if found is None:
        return None
    return AlertFact(units=found.units, bad_units=found.bad_units, e_value=found.e_value)


async def _health(connection: Connection, release: ServedRelease, since: datetime) -> HealthFact:
    found: Health = await interactions.health(
        connection, since=since, use_case=release.use_case, release_id=release.id
    )
    return HealthFact(
        requests=found.requests,
        units=found.units,
        failures=found.errors + found.blocked,
        failure_rate=found.failure_rate,
        p95_ms=found.p95_ms,
        cost_usd=float(found.cost_usd),
    )


async def _baseline(
    connection: Connection, use_case: str, release_id: str | None, since: datetime
) -> float | None:
    if release_id is None:
        return None
    found = await interactions.health(
        connection, since=since - BASELINE_WINDOW, use_case=use_case, release_id=release_id
    )
    return found.failure_rate


async def _rollout(connection: Connection, rollout: Rollout, now: datetime) -> RolloutFact:
    release = await deployments.find_release(connection, rollout.candidate_release_id)
    phase = rollout.analysis.get("phase")
    return RolloutFact(
        rollout_id=rollout.id,
        release_id=rollout.candidate_release_id,
        offering_id=release.offering_id if release else None,
        state=RolloutState(rollout.state),
        step=rollout.step,
        weight=rollout.weight,
        phase=Phase(phase) if phase in set(Phase) else None,
        failed_metrics=_failed(rollout.analysis.get("metrics") or ()),
        age_seconds=_age(now, rollout.ended_at or rollout.created_at) or 0.0,
        reason=rollout.reason,
    )


#: Names of metrics that a rollout compares; anything else is not passed on.
_METRICS = ("failure", "violation", "latency", "cost")


def _failed(metrics: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    found = {each.get("name") for each in metrics if each.get("phase") == Phase.FAILED}
    return tuple(name for name in _METRICS if name in found)


async def _ranking(connection: Connection, use_case: str) -> RankingFact | None:
    ranking = await registry.latest_ranking(connection, use_case)
    if ranking is None:
        return None
    return RankingFact(
        ranking_id=ranking.id,
        at=ranking.at,
        candidates=tuple(
            CandidateFact(
                offering_id=str(each["offering_id"]),
                position=position,
                saving_share=each.get("saving_share"),
                deployable=each.get("list") == "deployable",
            )
            for position, each in enumerate(ranking.candidates[:TOP_CANDIDATES])
        ),
    )


def _is_current(ranking: RankingFact | None, catalogue: CatalogueFact, stable: StableFact | None) -> bool:
    """Nothing that it was computed from has changed since."""
    if ranking is None:
        return False
    moments = (catalogue.newest_change_at, stable.since if stable else None)
    return all(moment is None or moment <= ranking.at for moment in moments)


async def _evaluations(
    connection: Connection,
    use_case: str,
    stable: StableFact | None,
    history: Sequence[Rollout],
    now: datetime,
) -> tuple[EvaluationFact, ...]:
    """The newest for each offering. Against another stable release it would be evidence of nothing."""
    if stable is None:
        return ()
    newest: dict[str, Evaluation] = {}
    for each in await evaluations.list_evaluations(connection, use_case, limit=200):
        if each.stable_release_id == stable.release_id:
            newest.setdefault(each.offering_id or each.candidate_release_id, each)
    rolled_out = {each.candidate_release_id for each in history}
    return tuple(
        EvaluationFact(
            evaluation_id=each.id,
            offering_id=each.offering_id,
            release_id=each.candidate_release_id,
            status=EvaluationStatus(each.status),
            age_hours=(_age(now, each.ended_at or each.created_at) or 0.0) / 3600,
            numbers=_numbers(each.summary or {}),
            was_rolled_out=each.candidate_release_id in rolled_out,
        )
        for each in newest.values()
    )


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _cooldown(ended: Sequence[Rollout], limits: Limits, now: datetime) -> float:
    waits = [0.0]
    for each in ended:
        hours = [limits.rollout_cooldown_hours]
        if each.state == RolloutState.ROLLED_BACK:
            hours.append(limits.rollback_cooldown_hours)
        waits.append(max(hours) * 3600 - (_age(now, each.ended_at) or 0.0))
    return max(waits)


async def _open_proposals(connection: Connection, now: datetime) -> tuple[OpenProposal, ...]:
    statuses = [each for each in ProposalStatus if not each.is_final]
    return tuple(
        OpenProposal(
            proposal_id=each.id,
            tool=each.tool,
            use_case=each.use_case,
            target=target_of(each.arguments),
            status=ProposalStatus(each.status),
            age_seconds=_age(now, each.created_at) or 0.0,
        )
        for each in await proposals.list_proposals(connection, statuses=statuses, limit=500)
    )


async def _refusals(
    connection: Connection, settings: Settings, policy: Policy, now: datetime
) -> tuple[Refusal, ...]:
    statuses = [
        ProposalStatus.DENIED,
        ProposalStatus.FAILED,
        ProposalStatus.REJECTED,
        ProposalStatus.EXPIRED,
    ]
    found = await proposals.list_proposals(connection, statuses=statuses, since=now - _NEVER_AGAIN, limit=500)
    aged = [(each, _age(now, each.ended_at or each.created_at) or 0.0) for each in found]
    return tuple(
        Refusal(
            tool=each.tool,
            use_case=each.use_case,
            target=target_of(each.arguments),
            status=ProposalStatus(each.status),
            age_seconds=age,
            remaining_seconds=remaining,
        )
        for each, age in aged
        if (remaining := _pause_after(each, settings, policy) - age) > 0
    )


def _pause_after(proposal: Proposal, settings: Settings, policy: Policy) -> float:
    """Seconds in which the same is not asked for again.

    A person's no, or silence, is respected as long as policy says. A denial or a failure may have had a
    reason that passes: it is worth another look after ten cycles, and at most after an hour.
    """
    if proposal.status in (ProposalStatus.REJECTED, ProposalStatus.EXPIRED):
        rules = policy.rules_for(proposal.use_case) if proposal.use_case else policy.base
        return rules.limits.rejection_cooldown_hours * 3600
    return min(10 * settings.agent.interval_seconds, 3600.0)
