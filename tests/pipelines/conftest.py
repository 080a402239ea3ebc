"""The engine's seam in one process, and a loopback HTTP server that says what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.context import Context, ProviderAccess
from pipelines.discovery.catalogue_diff import diff
from pipelines.discovery.source import Listing
from policies.loader import load_policy
from storage import clock, deployments, registry, routes, use_cases
from storage.database import Database
from storage.vocabulary import Arm, AssignmentUnit, Risk

ROOT = Path(__file__).resolve().parents[2]


class CrashError(Exception):
    """The process died: after a step's effect, before the engine wrote down that it was done."""


class RememberingRun:
    """A durable run without an engine: what a step returned is kept, as JSON, and not done again."""

    def __init__(
        self, context: Context, run_id: str, memory: dict[str, str], crash_after: str | None = None
    ) -> None:
        self.context = context
        self.id = run_id
        self.memory = memory
        self.crash_after = crash_after
        self.done: list[str] = []  #: steps that did their work in this attempt

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        if name not in self.memory:
            result = json.dumps(await work())
            self.done.append(name)
            if name == self.crash_after:
                raise CrashError(name)
            self.memory[name] = result
        return json.loads(self.memory[name])

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


Start = Callable[..., RememberingRun]


@pytest.fixture
def start_run(db: Database) -> Start:
    """Begin a run, or go on with one by handing in its memory."""
    policy = load_policy(ROOT / "policies" / "default.yaml")

    def start(
        run_id: str = "prop_test1",
        *,
        memory: dict[str, str] | None = None,
        crash_after: str | None = None,
        **world: Any,
    ) -> RememberingRun:
        values = {"gateway_url": "http://127.0.0.1:9", "gateway_key": "none"} | world
        context = Context(database=db, policy=policy, **values)
        return RememberingRun(context, run_id, {} if memory is None else memory, crash_after)

    return start


@dataclass
class Asked:
    """One request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Said:
    """One answer. ``hang`` seconds pass first; ``hang_up`` ends the connection without a word."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    hang_up: bool = False

    @classmethod
    def json(cls, document: Any, status: int = 200, **headers: str) -> Said:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(document).encode(), names)


@dataclass
class LoopbackServer:
    """A real HTTP server; ``answer`` may be changed while it runs."""

    answer: Callable[[Asked], Said]
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def access(self, name: str = "lab", kind: str = "openai_compatible") -> ProviderAccess:
        return ProviderAccess(name=name, kind=kind, base_url=f"{self.url}/v1", api_key="secret")

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(method, path, headers, body)
            self.asked.append(asked)
            said = self.answer(asked)
            if said.hang:
                # Ends early when the caller goes away.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(), said.hang)
            if not said.hang_up:
                writer.write(_render(said))
                await writer.drain()
        writer.close()


def _render(said: Said) -> bytes:
    headers: Mapping[str, str] = {
        "content-type": "application/json",
        "content-length": str(len(said.body)),
        "connection": "close",
        **said.headers,
    }
    lines = [f"HTTP/1.1 {said.status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + said.body


@pytest.fixture
async def launch_server() -> AsyncIterator[Callable[[Callable[[Asked], Said]], Awaitable[LoopbackServer]]]:
    """Start loopback servers, stopped with the test."""
    started: list[LoopbackServer] = []

    async def launch(answer: Callable[[Asked], Said]) -> LoopbackServer:
        server = LoopbackServer(answer)
        await server.start()
        started.append(server)
        return server

    yield launch
    for server in started:
        await server.stop()


@pytest.fixture
def said() -> type[Said]:
    """The shape of an answer: test modules cannot import from conftest."""
    return Said


@pytest.fixture
def crash() -> type[CrashError]:
    """What a run dies of."""
    return CrashError


@dataclass(frozen=True)
class Story:
    """A use case that is served, and something it could be served by."""

    use_case: str
    stable_release: str
    stable_deployment: str
    offering: str  #: reachable, a fifth of stable's price


@pytest.fixture
async def story(db: Database) -> Story:
    """The story-teller, served by lab/big, with thrift/small on offer."""
    suite = yaml.safe_load((ROOT / "examples/story_teller/suite.yaml").read_text())
    async with db.transaction() as connection:
        await use_cases.declare(
            connection,
            name="story-teller",
            risk=Risk.MEDIUM,
            constraints={"context": 8192, "capabilities": ["streaming"]},
            suite=suite,
        )
        deployment = await deployments.ensure_deployment(
            connection,
            provider="lab",
            model="big",
            price_input=Decimal("0.000003"),
            price_output=Decimal("0.000015"),
            parameters={"temperature": 0.5},
            system_prompt="You tell stories.",
        )
        release = await deployments.create_release(
            connection, use_case="story-teller", deployment_id=deployment, created_by="config"
        )
        await routes.set_route(
            connection,
            use_case="story-teller",
            arms=[routes.ArmSetting(Arm.STABLE, release, 1.0)],
            assignment_unit=AssignmentUnit.CONVERSATION,
            reason="first",
            created_by="config",
        )
        listings = [
            Listing(
                external_id=model,
                provider=provider,
                model=model,
                reachable=True,
                price_input=Decimal(price),
                price_output=Decimal(price) * 5,
                context_tokens=128_000,
                capabilities=("streaming",),
            )
            for provider, model, price in (("lab", "big", "0.000003"), ("thrift", "small", "0.0000006"))
        ]
        rows = [{"source": each["provider"], **each} for each in diff({}, listings, clock.now()).inserts]
        ids = await registry.insert_offerings(connection, rows)
    return Story("story-teller", release, deployment, ids[1])
