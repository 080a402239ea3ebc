"""The deterministic assistant: what it understands, what it answers, what it files and what it refuses."""

from __future__ import annotations

import pytest

from meta_agent import chat
from meta_agent.chat import ChatEvent
from meta_agent.chat_intents import Verb, understand
from meta_agent.services import Services
from meta_agent.settings import Settings
from policies.policy import Policy
from storage import flags, proposals
from storage.database import Database
from storage.vocabulary import Role
from tests.control.seeding import HOSTILE, Seeded


@pytest.fixture
def services(db: Database, policy: Policy) -> Services:
    return Services(db, Settings(), policy)


async def ask(services: Services, text: str, role: Role = Role.OPERATOR) -> tuple[str, list[ChatEvent]]:
    found = [event async for event in chat.answer(services, "t", "otto", role, text)]
    return "".join(event.text for event in found), found


@pytest.mark.parametrize(
    ("text", "verb", "subject", "use_case"),
    [
        ("Status?", Verb.STATUS, "", ""),
        ("how is story-teller doing", Verb.STATUS, "", ""),
        ("why was bargain-mini rolled back?", Verb.EXPLAIN, "bargain-mini", ""),
        ("What happened to swift-2?", Verb.EXPLAIN, "swift-2", ""),
        ("rank story-teller", Verb.RANK, "", "story-teller"),
        ("scan", Verb.SCAN, "", ""),
        ("test swift/swift-2 for story-teller", Verb.TEST, "swift/swift-2", "story-teller"),
        ("deploy rel_1", Verb.DEPLOY, "rel_1", ""),
        ("Roll back story-teller", Verb.ROLL_BACK, "", "story-teller"),
        ("approve prop_1", Verb.APPROVE, "", ""),
        ("what is waiting for me?", Verb.APPROVALS, "", ""),
        ("how much did we spend?", Verb.COST, "", ""),
        ("sing a song", Verb.UNKNOWN, "sing a song", ""),
    ],
)
def test_lines_are_understood(text: str, verb: Verb, subject: str, use_case: str) -> None:
    found = understand(text)
    assert (found.verb, found.subject, found.use_case) == (verb, subject, use_case)


@pytest.mark.parametrize("text", ["why " * 3000, "a" * 100_000, "roll back " + "\x00" * 50, "?" * 5000])
def test_long_lines_are_answered_at_once(text: str) -> None:
    understand(text)


async def test_questions_are_answered_from_rows(services: Services, seeded: Seeded) -> None:
    text, found = await ask(services, "status")
    assert "3 use cases" in text
    card = found[0].card
    assert card is not None
    assert card["rows"][0][:2] == ["story-teller", "studio/storyteller-large"]
    text, found = await ask(services, "why was bargain-mini rolled back?")
    assert "all traffic went back to storyteller-large" in text
    card = found[0].card
    assert card is not None
    assert card["link"] == f"/rollouts/{seeded.rolled_back}"
    assert ["Incidents", "3, latest: Output of a live answer stopped: violent_crimes"] in card["facts"]
    for line in ("approvals", "incidents", "cost", "decisions", "help"):
        text, _ = await ask(services, line)
        assert text
    text, _ = await ask(services, f"what happened to {HOSTILE}")
    assert text


async def test_what_acts_is_filed_and_not_done(services: Services, seeded: Seeded, db: Database) -> None:
    for line, tool in (
        ("scan", "scan"),
        ("rank story-teller", "rank"),
        ("test swift-2 for story-teller", "test"),
        (f"deploy {seeded.swift} for story-teller", "deploy"),
        ("roll back story-teller", "rollback"),
        ("abort the rollout for story-teller", "abort"),
    ):
        _, found = await ask(services, line)
        card = found[0].card
        assert card is not None, line
        assert (card["kind"], card["tool"]) == ("proposal", tool)
        async with db.connection() as connection:
            filed = await proposals.find(connection, card["link"].removeprefix("/approvals/"))
        assert filed is not None
        assert (filed.proposer, filed.status) == ("user:otto", "proposed")


async def test_it_asks_back_and_refuses_in_words(services: Services, seeded: Seeded, db: Database) -> None:
    assert "For which use case?" in (await ask(services, "rank"))[0]
    assert "no use case" in (await ask(services, "rank nothing"))[0]
    assert "No reachable offering" in (await ask(services, "test model-007 for story-teller"))[0]
    assert "never approve" in (await ask(services, f"approve {seeded.waiting}"))[0]
    assert "needs the role operator" in (await ask(services, "roll back story-teller", Role.VIEWER))[0]
    assert "needs the role operator" in (await ask(services, "pause", Role.VIEWER))[0]
    async with db.connection() as connection:
        assert not await flags.get(connection, flags.AGENT_PAUSED, False)
        assert not await proposals.list_approvals(connection, seeded.waiting)


async def test_pause_works_and_both_sides_are_kept(services: Services, seeded: Seeded, db: Database) -> None:
    await ask(services, "pause the agent")
    async with db.connection() as connection:
        assert await flags.get(connection, flags.AGENT_PAUSED) is True
    kept = await chat.history(services, "t")
    assert [message.role for message in kept] == ["operator", "agent"]
    assert kept[1].cards[0]["tool"] == "pause"
