"""The rules planner, as a table: a world, and what is asked for in it."""

from __future__ import annotations

import pytest

from meta_agent.planner import refusal
from meta_agent.planners.rules import plan_by_rules
from meta_agent.signals import assess
from policies.policy import Autonomy
from storage.vocabulary import EvaluationStatus, ProposalStatus

from .worlds import (
    USE_CASE,
    degraded,
    evaluation,
    fleet_facts,
    open_proposal,
    ranking,
    refused,
    rollout,
    use_case,
)

PROVEN = use_case(ranking=ranking(0.5, 0.3), evaluations=(evaluation("off_0"),))
UNTESTED = use_case(ranking=ranking(0.3, 0.5))
SCAN = ("scan", None)
RANK = ("rank", None)
DEPLOY = ("deploy", "rel_off_0")
ROLLBACK = ("rollback", None)
BEST = ("test", "off_1")


def planned(facts) -> list[tuple[str, str | None]]:
    return [(each.tool, each.target) for each in plan_by_rules(facts, assess(facts)).actions]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (fleet_facts(use_case()), []),
        (fleet_facts(use_case(), scan_age=None), [SCAN]),
        (fleet_facts(use_case(), scan_age=None, open_proposals=(open_proposal("scan"),)), []),
        (
            fleet_facts(use_case(), scan_age=None, refusals=(refused("scan", None, ProposalStatus.FAILED),)),
            [],
        ),
        (fleet_facts(use_case(ranking=None, ranking_is_current=False)), [RANK]),
        (
            fleet_facts(
                use_case(ranking=None, ranking_is_current=False), open_proposals=(open_proposal("rank"),)
            ),
            [],
        ),
        (fleet_facts(UNTESTED), [BEST]),
        # one test at a time
        (fleet_facts(UNTESTED, open_proposals=(open_proposal("test", "off_1"),)), []),
        # a failed one is not repeated, the next best is taken
        (
            fleet_facts(UNTESTED, refusals=(refused("test", "off_1", ProposalStatus.FAILED),)),
            [("test", "off_0")],
        ),
        # a denial speaks of all tests
        (fleet_facts(UNTESTED, refusals=(refused("test", "off_1", ProposalStatus.DENIED),)), []),
        (fleet_facts(use_case(ranking=ranking(0.1))), []),
        (fleet_facts(PROVEN), [DEPLOY]),
        (fleet_facts(PROVEN, open_proposals=(open_proposal("deploy", "rel_off_0"),)), []),
        # a person said no: that release is left alone, another candidate may be tested
        (
            fleet_facts(PROVEN, refusals=(refused("deploy", "rel_off_0", ProposalStatus.REJECTED),)),
            [("test", "off_1")],
        ),
        # a test that runs does not hold up a deploy
        (fleet_facts(PROVEN, open_proposals=(open_proposal("test", "off_1"),)), [DEPLOY]),
        (
            fleet_facts(PROVEN.model_copy(update={"active_rollout": rollout()})),
            [],
        ),
        (
            fleet_facts(PROVEN.model_copy(update={"deploy_cooldown_seconds": 60.0})),
            [("test", "off_1")],
        ),
        (
            fleet_facts(
                use_case(ranking=ranking(0.5), evaluations=(evaluation(status=EvaluationStatus.FAILED),))
            ),
            [],
        ),
        (fleet_facts(use_case(stable=degraded())), [ROLLBACK]),
        # harm first, whatever else there is to do
        (fleet_facts(PROVEN.model_copy(update={"stable": degraded()})), [ROLLBACK]),
        (
            fleet_facts(
                PROVEN.model_copy(update={"stable": degraded()}),
                open_proposals=(open_proposal("rollback"),),
            ),
            [],
        ),
        # use cases do not stand in each other's way
        (
            fleet_facts(PROVEN, use_case(name="other", stable=degraded()), scan_age=None),
            [ROLLBACK, SCAN, DEPLOY],
        ),
        # only looking is allowed
        (fleet_facts(PROVEN.model_copy(update={"autonomy": Autonomy.OBSERVE})), []),
        (
            fleet_facts(use_case(ranking=None, ranking_is_current=False, autonomy=Autonomy.OBSERVE)),
            [RANK],
        ),
        (fleet_facts(PROVEN, paused=True, scan_age=None), []),
    ],
)
def test_what_the_rules_ask_for(facts, expected):
    assert planned(facts) == expected


def test_no_more_than_three_actions_and_the_rest_is_said():
    names = [f"use-case-{number}" for number in range(5)]
    facts = fleet_facts(*(UNTESTED.model_copy(update={"name": name}) for name in names))
    plan = plan_by_rules(facts, assess(facts))
    assert len(plan.actions) == 3
    assert set(plan.holds) == set(names[3:])


def test_an_action_says_why_what_it_expects_and_what_else_there_was():
    facts = fleet_facts(UNTESTED)
    (action,) = plan_by_rules(facts, assess(facts)).actions
    assert "50%" in action.reason
    assert action.prediction == {"saving_share": 0.5}
    assert [each["tool"] for each in action.alternatives] == ["test", None]


def test_doing_nothing_has_a_reason():
    facts = fleet_facts(PROVEN, open_proposals=(open_proposal("deploy", "x", ProposalStatus.WAITING),))
    plan = plan_by_rules(facts, assess(facts))
    assert plan.holds == {USE_CASE: "deploy: a deploy is waiting for approval"}


def test_whatever_is_planned_passes_its_own_checks():
    facts = fleet_facts(PROVEN, use_case(name="other", stable=degraded()), scan_age=None)
    plan = plan_by_rules(facts, assess(facts))
    assert [refusal(facts, each) for each in plan.actions] == [None, None, None]
