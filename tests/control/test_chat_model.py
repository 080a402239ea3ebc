"""The chat with a language model, over a real OpenAI wire: it looks up, files what was asked for, no more."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from meta_agent import chat
from meta_agent.chat import ChatEvent
from meta_agent.gateway_settings import ProviderSettings
from meta_agent.services import Services
from meta_agent.settings import AgentSettings, Settings
from policies.policy import Policy
from storage import proposals
from storage.database import Database
from storage.vocabulary import Role
from tests.control.seeding import Seeded

Step = str | int | tuple[str, dict[str, Any]]


class Model(ThreadingHTTPServer):
    """Says what it was told to say: words, a tool call, or an HTTP error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Step] = []
        self.heard: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        step = self.server.script.pop(0)
        if isinstance(step, int):
            status, document = step, {"error": {"message": "out of order"}}
        else:
            status, document = 200, _completion(step)
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _completion(step: str | tuple[str, dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": step if isinstance(step, str) else None}
    if not isinstance(step, str):
        function = {"name": step[0], "arguments": json.dumps(step[1])}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def services(db: Database, policy: Policy, model: Model) -> Services:
    url = f"http://127.0.0.1:{model.server_port}/v1"
    provider = ProviderSettings(name="lab", kind="openai_compatible", base_url=url)
    settings = Settings(providers=(provider,), agent=AgentSettings(model="lab/talker"))
    return Services(db, settings, policy)


async def ask(services: Services, text: str, role: Role = Role.OPERATOR) -> tuple[str, list[ChatEvent]]:
    found = [event async for event in chat.answer(services, "t", "otto", role, text)]
    return found[-1].text, [event for event in found if event.kind == "card"]


async def test_it_looks_up_before_it_answers(services: Services, model: Model, seeded: Seeded) -> None:
    model.script = [("LookUp", {"what": "explain", "subject": "bargain-mini"}), "It failed too often."]
    text, cards = await ask(services, "please write me a poem about the fate of bargain-mini")
    assert text == "It failed too often."
    assert [event.card and event.card["link"] for event in cards] == [f"/rollouts/{seeded.rolled_back}"]
    assert "all traffic went back" in json.dumps(model.heard[1]["messages"])
    assert {tool["function"]["name"] for tool in model.heard[0]["tools"]} == {"LookUp", "ProposeAction"}


async def test_it_files_what_the_operator_asked_for(services: Services, model: Model, db: Database) -> None:
    action = {"tool": "rollback", "arguments": {"use_case": "story-teller"}}
    model.script = [("ProposeAction", action), ("ProposeAction", action), "Filed."]
    _, cards = await ask(services, "readers are unhappy, could you get story-teller rolled back, rollback it")
    assert [event.card and event.card["kind"] for event in cards] == ["proposal"]  # and not two
    async with db.connection() as connection:
        filed = await proposals.list_proposals(connection, tool="rollback")
    assert [each.proposer for each in filed] == ["user:otto"]


@pytest.mark.parametrize(
    ("text", "role", "told"),
    [
        ("sing of story-teller", Role.OPERATOR, "does not ask to rollback"),
        ("kindly revert it, dear", Role.VIEWER, "needs the role operator"),
    ],
)
async def test_it_cannot_file_on_its_own_account(
    services: Services, model: Model, db: Database, text: str, role: Role, told: str
) -> None:
    model.script = [("ProposeAction", {"tool": "rollback", "arguments": {"use_case": "story-teller"}}), "No."]
    _, cards = await ask(services, text, role)
    assert cards == []
    assert told in json.dumps(model.heard[1]["messages"])
    async with db.connection() as connection:
        assert await proposals.list_proposals(connection, tool="rollback") == []


@pytest.mark.parametrize(
    "step", [("ApproveAll", {}), ("LookUp", {"what": "secrets"}), ("ProposeAction", {"tool": "rm"})]
)
async def test_calls_that_fit_no_tool_are_sent_back(services: Services, model: Model, step: Step) -> None:
    model.script = [step, "Sorry."]
    assert await ask(services, "do something odd") == ("Sorry.", [])


async def test_it_never_turns_in_circles(services: Services, model: Model) -> None:
    model.script = [("LookUp", {"what": "cost"})] * 6
    text, cards = await ask(services, "tell me everything, slowly")
    assert "came to no answer" in text
    assert len(cards) == 6


async def test_without_its_model_the_chat_goes_on(services: Services, model: Model) -> None:
    model.script = [400]
    text, _ = await ask(services, "sing me a song")
    assert text.startswith("The language model did not answer")
    text, _ = await ask(services, "status")  # a typed command never asked for the model
    assert "3 use cases" in text
    assert len(model.heard) == 1
