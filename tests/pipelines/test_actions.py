"""No action without a verdict and a record; approvals bind what they were given for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pipelines import actions, approvals
from pipelines.approvals import ApprovalRefused
from storage import audit, flags, proposals, routes
from storage.database import Database
from storage.proposals import Proposal
from storage.vocabulary import (
    ApprovalWord,
    Arm,
    AssignmentUnit,
    EvaluationStatus,
    ProposalStatus,
    Risk,
    Role,
)
from tests.factories import World, demo_policy, make_context, make_release, make_world
from tools.contract import ToolArgumentsError, UnknownToolError
from tools.propose import propose


async def file_deploy(db: Database, world: World, proposer: str = "agent", **more: Any) -> Proposal:
    return await propose(
        db,
        demo_policy(),
        tool="deploy",
        arguments={"use_case": world.use_case, "release_id": world.candidate},
        proposer=proposer,
        reason="cheaper",
        **more,
    )


async def speak(db: Database, proposal: Proposal, who: str = "ann", role: Role = Role.APPROVER) -> Proposal:
    return await approvals.speak(
        db,
        proposal.id,
        approver=who,
        role=role,
        word=ApprovalWord.APPROVE,
        binding_digest=proposal.binding_digest,
    )


async def reload(db: Database, proposal: Proposal) -> Proposal:
    async with db.connection() as connection:
        found = await proposals.find(connection, proposal.id)
    assert found is not None
    return found


async def events_of(db: Database, proposal: Proposal) -> list[str]:
    async with db.connection() as connection:
        assert (await audit.verify(connection)).intact
        return [row.event for row in await audit.list_rows(connection, subject=proposal.id)][::-1]


async def test_medium_risk_waits_for_a_person_and_then_starts_once(db: Database) -> None:
    world, started = await make_world(db), list[str]()
    context = make_context(db, started=started)
    proposal = await file_deploy(db, world)
    assert await actions.guard(context, proposal.id) is ProposalStatus.WAITING
    assert await actions.execute(context, proposal.id) is ProposalStatus.WAITING
    assert started == []
    await speak(db, await reload(db, proposal))
    results = await asyncio.gather(*(actions.execute(context, proposal.id) for _ in range(5)))
    assert set(results) == {ProposalStatus.EXECUTING}
    assert started == [proposal.id]
    assert await events_of(db, proposal) == [
        "proposal.created",
        "proposal.waiting",
        "approval.given",
        "action.started",
    ]


async def test_low_risk_goes_on_alone(db: Database) -> None:
    world, started = await make_world(db, risk=Risk.LOW), list[str]()
    proposal = await file_deploy(db, world)
    assert await actions.execute(make_context(db, started=started), proposal.id) is ProposalStatus.EXECUTING
    assert started == [proposal.id]


async def test_high_risk_takes_two_people(db: Database) -> None:
    world = await make_world(db, risk=Risk.HIGH)
    context = make_context(db, started=[])
    proposal = await file_deploy(db, world)
    await actions.guard(context, proposal.id)
    await speak(db, await reload(db, proposal), "ann")
    assert await actions.execute(context, proposal.id) is ProposalStatus.WAITING
    with pytest.raises(ApprovalRefused, match="already spoken"):
        await speak(db, await reload(db, proposal), "ann")
    await speak(db, await reload(db, proposal), "bob", Role.ADMIN)
    assert await actions.execute(context, proposal.id) is ProposalStatus.EXECUTING


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"summary": {"similarity": 0.94}}, "quality.similarity"),
        ({"summary": {"safety": 0.5}}, "quality.safety"),
        ({"summary": {"cases": 3}}, "quality.cases"),
        ({"summary": {"pass_rate_candidate": 0.5}}, "quality.pass_rate"),
        ({"status": EvaluationStatus.FAILED}, "quality.status"),
        ({"budget": 0.0}, "budget"),
        ({"budget": None}, "budget"),
    ],
)
async def test_what_falls_short_is_denied_with_the_rule(
    db: Database, change: dict[str, Any], rule: str
) -> None:
    world = await make_world(db, risk=Risk.LOW, **change)
    proposal = await file_deploy(db, world)
    assert await actions.execute(make_context(db), proposal.id) is ProposalStatus.DENIED
    verdict = (await reload(db, proposal)).verdict
    assert verdict is not None
    # The tier is listed as well; what denies is this one rule.
    assert [each["rule"] for each in verdict["checks"] if not each["ok"] and each["effect"] == "deny"] == [
        rule
    ]
    assert (await events_of(db, proposal))[-1] == "proposal.denied"


async def test_words_that_no_database_takes_stop_nothing(db: Database) -> None:
    world = await make_world(db)
    proposal = await propose(
        db,
        demo_policy(),
        tool="rank",
        arguments={"use_case": world.use_case},
        proposer="agent",
        reason="a\x00b \ud800",
    )
    assert proposal.reason == "ab ?"


async def test_the_meta_model_never_answers_an_application(db: Database) -> None:
    world = await make_world(db, risk=Risk.LOW)
    async with db.transaction() as connection:
        await flags.put(connection, flags.META_MODEL, "thrift/small", "test")
    proposal = await file_deploy(db, world)
    assert await actions.execute(make_context(db), proposal.id) is ProposalStatus.DENIED


async def test_an_approval_does_not_outlive_the_state_it_was_given_for(db: Database) -> None:
    world, started = await make_world(db), list[str]()
    context = make_context(db, started=started)
    proposal = await file_deploy(db, world)
    await actions.guard(context, proposal.id)
    await speak(db, await reload(db, proposal))
    other = await make_world(db, name="other")
    async with db.transaction() as connection:
        await connection.execute(
            text("update releases set evaluation_id = :other where id = :id"),
            {"other": other.evaluation, "id": world.candidate},
        )
    assert await actions.execute(context, proposal.id) is ProposalStatus.DENIED
    assert started == []


async def test_an_approval_under_another_policy_does_not_count(db: Database) -> None:
    world, started = await make_world(db), list[str]()
    proposal = await file_deploy(db, world)
    await actions.guard(make_context(db), proposal.id)
    await speak(db, await reload(db, proposal))
    other = make_context(db, policy=replace(demo_policy(), version=99), started=started)
    assert await actions.execute(other, proposal.id) is ProposalStatus.WAITING
    assert started == []
    # Judged anew it is another question, which the same person may answer.
    await speak(db, await reload(db, proposal))
    assert await actions.execute(other, proposal.id) is ProposalStatus.EXECUTING


@pytest.mark.parametrize("spelling", ["Ann", "ANN ", "\uff41nn", "user:ann"])
async def test_the_proposer_cannot_approve_under_another_spelling(db: Database, spelling: str) -> None:
    world = await make_world(db)
    proposal = await file_deploy(db, world, proposer="user:ann")
    await actions.guard(make_context(db), proposal.id)
    with pytest.raises(ApprovalRefused, match="whoever proposes cannot approve"):
        await speak(db, await reload(db, proposal), spelling, Role.ADMIN)


async def test_one_person_with_two_spellings_is_no_four_eyes(db: Database) -> None:
    world = await make_world(db, risk=Risk.HIGH)
    context = make_context(db, started=[])
    proposal = await file_deploy(db, world)
    await actions.guard(context, proposal.id)
    await speak(db, await reload(db, proposal), "ann")
    await speak(db, await reload(db, proposal), "Ann")
    assert await actions.execute(context, proposal.id) is ProposalStatus.WAITING


async def test_the_record_of_an_action_holds_the_verdict_it_was_given_on(db: Database) -> None:
    world = await make_world(db)
    proposal = await file_deploy(db, world)
    async with db.transaction() as connection:
        await connection.execute(text("update use_cases set risk = 'low'"))
    assert await actions.execute(make_context(db, started=[]), proposal.id) is ProposalStatus.EXECUTING
    async with db.connection() as connection:
        (row,) = await audit.list_rows(connection, subject=proposal.id, event="action.started")
    assert '"verdict":"allow"' in row.data


async def test_evidence_against_a_former_stable_release_is_none(db: Database) -> None:
    world = await make_world(db, risk=Risk.LOW)
    async with db.transaction() as connection:
        other = await make_release(connection, world.use_case, "lab", "other", "0.000001", "0.000002")
        await routes.set_route(
            connection,
            use_case=world.use_case,
            arms=[routes.ArmSetting(Arm.STABLE, other, 1.0)],
            assignment_unit=AssignmentUnit.CONVERSATION,
            reason="test",
            created_by="rollout:x",
        )
    proposal = await file_deploy(db, world)
    assert await actions.execute(make_context(db), proposal.id) is ProposalStatus.DENIED
    assert "evaluation: unknown" in ((await reload(db, proposal)).error or "")


async def test_a_plan_that_cannot_be_read_is_denied_and_breaks_nothing(db: Database) -> None:
    world = await make_world(db, risk=Risk.LOW, plan={"canry": []})
    proposal = await file_deploy(db, world)
    assert await actions.execute(make_context(db), proposal.id) is ProposalStatus.DENIED


async def test_half_a_price_is_no_price(db: Database) -> None:
    world = await make_world(db, risk=Risk.LOW)
    async with db.transaction() as connection:
        await connection.execute(text("update deployments set price_output = 0 where model = 'small'"))
    proposal = await file_deploy(db, world)
    assert await actions.execute(make_context(db), proposal.id) is ProposalStatus.DENIED


async def test_the_rate_counts_when_things_were_started_and_not_when_they_were_asked_for(
    db: Database,
) -> None:
    world = await make_world(db, risk=Risk.LOW)
    policy = demo_policy()
    strict = replace(policy, tools={**policy.tools, "rank": replace(policy.tools["rank"], per_day=1)})
    filed = [
        await propose(
            db,
            policy,
            tool="rank",
            arguments={"use_case": world.use_case},
            proposer="agent",
            reason="look",
        )
        for _ in range(2)
    ]
    async with db.transaction() as connection:
        await connection.execute(text("alter table proposals disable trigger all"))
        await connection.execute(text("update proposals set created_at = created_at - interval '2 days'"))
    context = make_context(db, policy=strict, started=[])
    results = [await actions.execute(context, each.id) for each in filed]
    assert results == [ProposalStatus.EXECUTING, ProposalStatus.DENIED]


async def test_who_may_speak(db: Database) -> None:
    world = await make_world(db)
    proposal = await file_deploy(db, world, proposer="user:ann")
    with pytest.raises(ApprovalRefused, match="does not wait"):
        await speak(db, proposal)
    await actions.guard(make_context(db), proposal.id)
    waiting = await reload(db, proposal)
    with pytest.raises(ApprovalRefused, match="whoever proposes cannot approve"):
        await speak(db, waiting, "ann", Role.ADMIN)
    with pytest.raises(ApprovalRefused, match="operator cannot approve"):
        await speak(db, waiting, "bob", Role.OPERATOR)
    with pytest.raises(ApprovalRefused, match="not what stands there now"):
        await approvals.speak(
            db,
            proposal.id,
            approver="bob",
            role=Role.APPROVER,
            word=ApprovalWord.APPROVE,
            binding_digest="sha256:other",
        )
    rejected = await approvals.speak(
        db,
        proposal.id,
        approver="bob",
        role=Role.OPERATOR,
        word=ApprovalWord.REJECT,
        binding_digest=waiting.binding_digest,
        comment="not today",
    )
    assert rejected.status == ProposalStatus.REJECTED
    again = await file_deploy(db, world)
    assert await actions.guard(make_context(db), again.id) is ProposalStatus.DENIED


async def test_a_proposal_expires(db: Database) -> None:
    world = await make_world(db)
    proposal = await file_deploy(db, world, expires_in=timedelta(0))
    assert await actions.guard(make_context(db), proposal.id) is ProposalStatus.EXPIRED


async def test_a_paused_agent_does_not_act_but_people_do(db: Database) -> None:
    world = await make_world(db, risk=Risk.LOW)
    async with db.transaction() as connection:
        await flags.put(connection, flags.AGENT_PAUSED, True, "ann")
    assert await actions.guard(make_context(db), (await file_deploy(db, world)).id) is ProposalStatus.DENIED
    assert await actions.guard(make_context(db), (await file_deploy(db, world, "user:ann")).id) == "approved"


async def test_two_proposals_that_fit_the_budget_only_alone(db: Database) -> None:
    world, started = await make_world(db, risk=Risk.LOW, budget=0.5), list[str]()
    context = make_context(db, started=started)
    filed = [
        await propose(
            db,
            demo_policy(),
            tool="test",
            arguments={"use_case": world.use_case, "offering_id": world.offering},
            proposer="agent",
            reason="try",
        )
        for _ in range(8)
    ]
    results = await asyncio.gather(*(actions.execute(context, each.id) for each in filed))
    # 30 recorded cases cost (300 * 3.6 + 200 * 18) USD per million tokens: 0.14 each, three fit into 0.50.
    assert results.count(ProposalStatus.EXECUTING) == len(started) == 3
    assert results.count(ProposalStatus.DENIED) == 5


async def test_what_a_proposal_asks_for_cannot_be_changed(db: Database) -> None:
    proposal = await file_deploy(db, await make_world(db))
    with pytest.raises(DBAPIError, match="cannot change"):
        async with db.transaction() as connection:
            await connection.execute(text("update proposals set arguments = '{}'"))
    assert (await reload(db, proposal)).arguments == proposal.arguments


async def test_nonsense_is_refused_before_anything_is_stored(db: Database) -> None:
    for tool, arguments, error in (
        ("format_disk", {}, UnknownToolError),
        ("deploy", {"use_case": "x"}, ToolArgumentsError),
        ("deploy", {"use_case": "x", "release_id": "y", "similarity": 1.0}, ToolArgumentsError),
        ("rank", {"use_case": 5}, ToolArgumentsError),
        ("rank", {"use_case": "a\x00b"}, ToolArgumentsError),
        ("rank", {"use_case": "\ud800"}, ToolArgumentsError),
    ):
        with pytest.raises(error):
            await propose(
                db, demo_policy(), tool=tool, arguments=arguments, proposer="agent", reason="because"
            )
    async with db.connection() as connection:
        assert await proposals.list_proposals(connection) == []
