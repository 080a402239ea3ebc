"""The ranking as a run: from what storage knows to a stored ranking, once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipelines.discovery.rank import RankingError, run_rank
from storage import audit, clock, deployments, evaluations, interactions, registry, rollouts, use_cases
from storage.ids import new_id
from storage.vocabulary import EvaluationStatus, Risk, RolloutState


async def rank(start_run, run_id="prop_1", **more):
    return await run_rank(start_run(run_id, **more), {"use_case": "story-teller"})


async def ranking(db):
    async with db.connection() as connection:
        return await registry.latest_ranking(connection, "story-teller")


async def evaluate(db, story, status, **changes):
    """A finished evaluation of the offering; returns its candidate release."""
    async with db.transaction() as connection:
        use_case = await use_cases.find(connection, story.use_case)
        release = await deployments.create_release(
            connection,
            use_case=story.use_case,
            deployment_id=await deployments.ensure_deployment(
                connection, provider="thrift", model="small", price_input=1, price_output=1
            ),
            created_by="pipeline",
        )
        values = {
            "use_case": story.use_case,
            "candidate_release_id": release,
            "stable_release_id": story.stable_release,
            "offering_id": story.offering,
            "suite_digest": use_case.suite_digest,
        }
        evaluation_id = new_id("eval")
        await evaluations.create(connection, evaluation_id=evaluation_id, **(values | changes))
        await evaluations.finish(
            connection,
            evaluation_id,
            status=status,
            summary={"cases": 60, "pass_rate_candidate": 0.95},
            reason="as it was",
        )
    return release


async def test_a_cheaper_offering_is_worth_measuring_by_the_default_profile(db, start_run, story):
    result = await rank(start_run)
    assert result["best"]["offering_id"] == story.offering
    assert result["best"]["list"] == "worth_measuring"
    assert result["best"]["saving_share"] == pytest.approx(0.8)
    assert result["excluded"] == {"current_model": 1}
    stored = await ranking(db)
    assert stored.id == result["ranking_id"] == "rank_1"
    assert stored.profile["source"] == "default"
    assert (stored.profile["prompt_tokens"], stored.profile["completion_tokens"]) == (300, 200)
    assert stored.profile["stable_cost_per_request_usd"] == pytest.approx(0.0039)
    assert stored.candidates[0]["cost_per_request_usd"] == pytest.approx(0.00078)
    async with db.connection() as connection:
        [row] = await audit.list_rows(connection, event="ranking.finished")
        assert row.subject == "rank_1"


async def test_logged_traffic_makes_the_profile(db, start_run, story):
    moment = clock.now()
    rows = [
        {
            "id": new_id("int"), "at": moment, "kind": "live", "use_case": "story-teller", "status": "ok",
            "prompt_tokens": 1000, "completion_tokens": 100,
        }
        for _ in range(70)
    ]  # fmt: skip
    await interactions.copy_batch(db, rows)
    await rank(start_run)
    stored = await ranking(db)
    assert stored.profile["source"] == "logged"
    assert stored.profile["monthly_requests"] == 300
    assert stored.candidates[0]["cost_per_request_usd"] == pytest.approx(0.0009)
    assert stored.candidates[0]["expected_monthly_saving_usd"] == pytest.approx(300 * 0.0036)


async def test_a_passed_evaluation_makes_it_deployable(db, start_run, story):
    release = await evaluate(db, story, EvaluationStatus.PASSED)
    await rank(start_run)
    [candidate] = (await ranking(db)).candidates
    assert (candidate["list"], candidate["release_id"]) == ("deployable", release)
    assert candidate["quality"]["cases"] == 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"suite_digest": "old"}, "suite that has changed"), ({"stable_release_id": None}, "no longer serves")],
)
async def test_evidence_that_no_longer_counts_is_history(db, start_run, story, changes, words):
    if "stable_release_id" in changes:
        changes = {"stable_release_id": await evaluate(db, story, EvaluationStatus.ERROR)}
    await evaluate(db, story, EvaluationStatus.PASSED, **changes)
    await rank(start_run)
    [candidate] = (await ranking(db)).candidates
    assert candidate["list"] == "worth_measuring"
    assert words in candidate["why"]


async def test_what_failed_or_was_rolled_back_lately_is_excluded(db, start_run, story):
    release = await evaluate(db, story, EvaluationStatus.FAILED)
    assert (await rank(start_run, "prop_1"))["excluded"] == {"current_model": 1, "failed_recently": 1}
    [example] = (await ranking(db)).excluded["examples"]["failed_recently"]
    assert example["why"] == "its evaluation here failed: as it was"
    await evaluate(db, story, EvaluationStatus.PASSED)
    async with db.transaction() as connection:
        rollout_id = await rollouts.create(
            connection,
            use_case=story.use_case,
            candidate_release_id=release,
            stable_release_id=story.stable_release,
            plan={},
        )
        rollout = await rollouts.find(connection, rollout_id)
        ended = {"state": RolloutState.ROLLED_BACK, "ended_at": clock.now()}
        assert await rollouts.transition(connection, rollout, **ended)
    assert (await rank(start_run, "prop_2"))["excluded"] == {"current_model": 1, "rolled_back_recently": 1}
    async with db.transaction() as connection:
        rollout = await rollouts.find(connection, rollout_id)
        await rollouts.transition(connection, rollout, ended_at=clock.now() - timedelta(days=31))
    assert (await rank(start_run, "prop_3"))["best"]["list"] == "deployable"


async def test_a_crash_after_the_ranking_doubles_nothing(db, start_run, story, crash):
    memory = {}
    with pytest.raises(crash):
        await rank(start_run, memory=memory, crash_after="rank")
    await evaluate(db, story, EvaluationStatus.PASSED)  # the world moves on in between
    result = await rank(start_run, memory=memory)
    assert result["best"]["list"] == "worth_measuring"  # and the ranking that was made stays
    async with db.connection() as connection:
        assert len(await audit.list_rows(connection, event="ranking.finished")) == 1


async def test_nothing_to_rank_for_is_said(db, start_run):
    with pytest.raises(RankingError, match="no use case"):
        await rank(start_run)
    async with db.transaction() as connection:
        await use_cases.declare(connection, name="story-teller", risk=Risk.LOW)
    with pytest.raises(RankingError, match="nothing serves story-teller yet"):
        await rank(start_run)
