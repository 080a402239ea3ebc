"""The director acts when it should, once, and on the real provider."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from meta_agent.demo import director
from meta_agent.demo.director import Memory, Script

AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SCRIPT = Script(control="http://127.0.0.1:9", key="k", bargain="http://127.0.0.1:9")


def rollout(**changes: Any) -> dict[str, Any]:
    candidate = {"provider": "bargain", "model": "budget-nano"}
    usual = {
        "id": "ro_1",
        "use_case": "story-teller",
        "state": "canary",
        "weight": 0.25,
        "candidate": candidate,
    }
    return usual | changes


def approval(waiting: float, **changes: Any) -> dict[str, Any]:
    since = (AT - timedelta(seconds=waiting)).isoformat()
    usual = {"id": "prop_1", "tool": "deploy", "binding_digest": "d", "created_at": since}
    return usual | {"waiting_since": since} | changes


@pytest.mark.parametrize(
    ("changes", "ripe"),
    [
        ({}, True),
        ({"weight": 0.5}, True),
        ({"weight": 0.1}, False),
        ({"weight": None}, False),
        ({"state": "shadow"}, False),
        ({"state": "rolled_back"}, False),
        ({"candidate": {"provider": "thrift", "model": "swift-mini"}}, False),
        ({"candidate": None}, False),
    ],
)
def test_only_a_bargain_with_real_traffic_falls_ill(changes: dict[str, Any], ripe: bool) -> None:
    assert director.find_ripe([rollout(**changes)], SCRIPT, Memory()) == (["ro_1"] if ripe else [])


def test_nobody_falls_ill_twice() -> None:
    assert director.find_ripe([rollout()], SCRIPT, Memory(ill={"ro_1"})) == []


def test_proposals_are_approved_after_waiting_and_once() -> None:
    waiting = [approval(19), approval(21, id="prop_2"), approval(99, id="prop_3")]
    due = director.find_due(waiting, SCRIPT, Memory(settled={("prop_3", "d")}), AT)
    assert [it["id"] for it in due] == ["prop_2"]
    no_word = director.read_script(["--key", "k", "--no-approve"])
    assert director.find_due(waiting, no_word, Memory(), AT) == []


async def test_the_real_provider_is_made_ill(bargain: Any) -> None:
    script = Script(control="http://127.0.0.1:9", key="k", bargain=bargain.url)
    memory = Memory()
    async with httpx.AsyncClient(trust_env=False) as client:
        await director.make_ill(client, script, "ro_1", memory)
    now = bargain.http.get(f"{bargain.url}/_sim/behaviour/budget-nano").json()
    assert (now["error_rate"], now["unsafe_rate"]) == (0.5, 0.4)
    assert memory.ill == {"ro_1"}


async def test_a_control_plane_that_is_down_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "meta_agent.demo.director")
    stopped = asyncio.Event()
    script = Script(control="http://127.0.0.1:9", key="k", bargain="http://127.0.0.1:9", interval=0.01)
    playing = asyncio.create_task(director.play(script, stopped))
    deadline = time.monotonic() + 5
    while len(caplog.records) < 3 and time.monotonic() < deadline:
        await asyncio.wait([playing], timeout=0.01)
    assert len(caplog.records) >= 3
    stopped.set()
    await asyncio.wait_for(playing, 5)


class Desk(ThreadingHTTPServer):
    """The two lists and the one verb of the control plane that the director knows, over real HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), DeskHandler)
        self.words: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.answers = [503, 201, 409]
        self.rollouts: list[dict[str, Any]] = []
        self.approvals: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class DeskHandler(BaseHTTPRequestHandler):
    server: Desk

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["authorization"])
        lists = {"/api/v1/rollouts": self.server.rollouts, "/api/v1/approvals": self.server.approvals}
        self.answer(200, lists[self.path])

    def do_POST(self) -> None:
        self.server.words.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.answer(self.server.answers.pop(0), {})

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_whole_play_over_http(desk: Desk, bargain: Any) -> None:
    """One proposal is approved at the second attempt, one is refused for good; each rollout once."""
    desk.rollouts = [rollout(), rollout(id="ro_0", state="promoted")]
    desk.approvals = [approval(0), approval(0, id="prop_2", binding_digest="e")]
    script = Script(control=desk.url, key="k", bargain=bargain.url, approve_after=-1e9, interval=0.01)
    stopped = asyncio.Event()
    playing = asyncio.create_task(director.play(script, stopped))
    deadline = time.monotonic() + 5
    while desk.answers and time.monotonic() < deadline:
        await asyncio.wait([playing], timeout=0.02)
    await asyncio.wait([playing], timeout=0.1)  # time enough to do something twice
    stopped.set()
    await asyncio.wait_for(playing, 5)
    assert [word["proposal_id"] for word in desk.words] == ["prop_1", "prop_1", "prop_2"]
    assert desk.words[-1] == {
        "proposal_id": "prop_2",
        "word": "approve",
        "binding_digest": "e",
        "comment": "approved by the demo's operator on duty",
    }
    assert desk.keys == {"Bearer k"}
    assert bargain.http.get(f"{bargain.url}/_sim/behaviour/budget-nano").json()["error_rate"] == 0.5
