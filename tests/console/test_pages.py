"""Every page in a real browser: it loads in silence, is accessible, fits a phone, and does its work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.console.conftest import Console, Visitor
from tests.control.seeding import HOSTILE

pytestmark = pytest.mark.browser

Visit = Callable[..., Visitor]


def pages(console: Console) -> list[str]:
    found = console.seeded
    return [
        "/", "/use-cases/story-teller", "/chat", "/approvals", f"/approvals/{found.waiting}", "/rollouts",
        f"/rollouts/{found.running}", f"/rollouts/{found.rolled_back}", "/models", "/evaluations",
        f"/evaluations/{found.evaluation}", "/decisions", "/incidents", "/audit",
    ]  # fmt: skip


def settled(visitor: Visitor) -> None:
    """The page is drawn and its stream stands."""
    visitor.page.wait_for_selector(".stream.live", state="attached")
    if visitor.page.query_selector("[data-rollout-chart]"):
        visitor.page.wait_for_selector(".uplot canvas")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_are_accessible_and_quiet(visit: Visit, console: Console, dark: bool) -> None:
    visitor = visit(dark=dark)
    for path in pages(console):
        visitor.open(path)
        settled(visitor)
        violations = Axe().run(visitor.page).response["violations"]
        told = [(each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in violations]
        assert not told, f"{path}: {json.dumps(told, indent=1)}"
    assert visitor.complaints == []


def test_the_log_in_page_is_accessible(visit: Visit) -> None:
    visitor = visit(None, dark=True)
    visitor.open("/login")
    assert Axe().run(visitor.page).response["violations"] == []


def test_pages_fit_a_phone(visit: Visit, console: Console) -> None:
    visitor = visit(width=390)
    for path in pages(console):
        visitor.open(path)
        settled(visitor)
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{path} is {width} wide"
    assert not visitor.page.is_visible("#nav")
    visitor.page.click("[data-menu]")
    assert visitor.page.is_visible("#nav")
    assert visitor.page.is_visible("#agent-switch button")


def test_hostile_names_and_outputs_stay_text(visit: Visit, console: Console) -> None:
    visitor = visit()
    for path in [*pages(console), f"/models?search={HOSTILE}", "/audit?event=%22%3E%3Cscript%3E"]:
        visitor.open(path)
        assert visitor.page.evaluate("window.hacked") is None, path
        assert visitor.page.query_selector("img[src=x]") is None, path
    visitor.open("/models")
    assert HOSTILE in visitor.page.inner_text("#offerings")
    visitor.open("/incidents")
    visitor.page.click("details summary >> nth=0")
    assert HOSTILE in visitor.page.inner_text("#incidents .untrusted >> nth=0")
    assert visitor.complaints == []


def test_a_wrong_password_is_told(visit: Visit) -> None:
    visitor = visit(None)
    visitor.open("/audit")
    assert visitor.page.url.endswith("/login?next=/audit")
    visitor.page.fill("[name=name]", "vera")
    visitor.page.fill("[name=password]", "wrong")
    visitor.page.click("button[type=submit]")
    assert "do not belong together" in visitor.page.inner_text("[role=alert]")


def test_the_pause_is_two_clicks_away_from_everywhere(visit: Visit, console: Console) -> None:
    visitor = visit("otto")
    watcher = visit("vera")
    watcher.open("/models")
    settled(watcher)
    assert watcher.page.is_disabled("#agent-switch button")
    visitor.open("/audit")
    visitor.page.click("#agent-switch button")
    assert "agent is paused" in visitor.page.inner_text(".notice").lower()
    # The other page hears of it by itself.
    watcher.page.wait_for_selector("#agent-switch >> text=agent paused")
    visitor.page.click("#agent-switch button")
    watcher.page.wait_for_selector("#agent-switch >> text=agent active")


def test_a_person_approves_and_the_page_shows_it(visit: Visit, console: Console) -> None:
    own = visit("anna")
    own.open(f"/approvals/{console.seeded.own}")
    assert own.page.is_disabled("button[value=approve]")
    assert "somebody else must approve" in own.page.inner_text("aside")
    visitor, watcher = visit("anna"), visit("vera")
    watcher.open(f"/approvals/{console.seeded.waiting}")
    settled(watcher)
    visitor.open("/approvals")
    visitor.page.click(f"#approvals a.button[href='/approvals/{console.seeded.waiting}']")
    assert "quality.similarity" in visitor.page.inner_text(".checks")
    visitor.page.fill("[name=comment]", "looks right <b>to me</b>")
    visitor.page.click("button[value=approve]")
    assert "approval is on record" in visitor.page.inner_text(".notice").lower()
    assert "looks right <b>to me</b>" in visitor.page.inner_text("#proposal-state")
    watcher.page.wait_for_selector("#proposal-state >> text=anna")
    visitor.page.click("button[value=approve]")
    assert "already spoken" in visitor.page.inner_text("[role=alert]")


def test_the_chart_follows_the_measurements(visit: Visit, console: Console) -> None:
    visitor = visit()
    visitor.open(f"/rollouts/{console.seeded.running}")
    settled(visitor)
    assert len(visitor.page.query_selector_all(".uplot canvas")) == 2
    with (
        visitor.page.expect_response(lambda answer: "after=" in answer.url and answer.json() != []),
        psycopg.connect(console.database_url, autocommit=True) as connection,
    ):
        connection.execute(
            "insert into rollout_measurements (rollout_id, at, state, step, weight, phase, metrics)"
            " select rollout_id, now(), state, step, weight, phase, metrics from rollout_measurements"
            " where rollout_id = %s order by id desc limit 1",
            (console.seeded.running,),
        )
    visitor.page.select_option("[data-metric]", "latency")
    visitor.page.wait_for_selector(".uplot canvas")
    assert visitor.complaints == []


def test_a_rollout_is_paused_and_aborted_by_hand(visit: Visit, console: Console) -> None:
    visitor = visit("otto")
    visitor.open(f"/rollouts/{console.seeded.running}")
    visitor.page.click("text=Pause >> nth=-1")
    assert "pause is requested" in visitor.page.inner_text(".notice").lower()
    visitor.page.click("details.confirm summary")
    visitor.page.fill("[name=reason]", "readers complain")
    visitor.page.click("text=Abort the rollout")
    assert "proposal is filed" in visitor.page.inner_text(".notice").lower()


def test_the_audit_is_verified_on_the_page(visit: Visit, console: Console) -> None:
    visitor = visit("vera")
    visitor.open("/audit")
    visitor.page.click("text=Verify the chain")
    assert "Intact" in visitor.page.inner_text("#verification .notice")
    visitor.page.fill("#event", "rollout.rolled_back")
    visitor.page.click("text=Filter")
    assert visitor.page.inner_text("tbody").count("rollout.rolled_back") == 1


def test_the_catalogue_is_searched_as_one_types(visit: Visit) -> None:
    visitor = visit()
    visitor.open("/models")
    visitor.page.type("#search", "bargain")
    expect(visitor.page.locator("#offerings tbody tr")).to_have_count(1)
    assert "bargain-mini" in visitor.page.inner_text("#offerings")
    visitor.page.fill("#search", "")
    visitor.page.check("[name=reachable]")
    expect(visitor.page.locator("#offerings tbody tr")).to_have_count(3)
    assert visitor.complaints == []


def test_the_chat_answers_and_files(visit: Visit, console: Console) -> None:
    visitor = visit("otto")
    visitor.open("/chat")
    visitor.page.click("[data-say=status]")
    visitor.page.wait_for_selector(".message.agent .tool >> text=storyteller-large")
    expect(visitor.page.locator("#text")).to_have_value("")
    say(visitor, HOSTILE)
    visitor.page.wait_for_selector("text=I did not understand that")
    assert visitor.page.evaluate("window.hacked") is None
    say(visitor, "rank story-teller")
    visitor.page.wait_for_selector("text=Filed in your name")
    count = len(visitor.page.query_selector_all(".message"))
    visitor.page.reload()
    visitor.page.wait_for_selector("text=Filed in your name")
    assert len(visitor.page.query_selector_all("article.message")) == 6
    assert count >= 6
    visitor.page.click("text=Open the proposal")
    assert re.search(r"/approvals/prop_", visitor.page.url)
    assert visitor.complaints == []


def say(visitor: Visitor, text: str) -> None:
    visitor.page.fill("#text", text)
    visitor.page.press("#text", "Enter")


def test_pages_work_without_scripts(browser: Any, console: Console) -> None:
    from tests.control.seeding import PASSWORD

    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(console.url + "/login")
    page.fill("[name=name]", "otto")
    page.fill("[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.goto(console.url + "/chat")
    page.fill("#text", "cost")
    page.click("form.composer button")
    assert "spent this month" in page.inner_text("#messages")
    page.goto(console.url + "/models?search=swift-2")
    assert "swift-2" in page.inner_text("#offerings")
    context.close()
