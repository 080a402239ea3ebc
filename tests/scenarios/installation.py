"""A whole installation for scenarios: real processes on free ports, talked to as users and operators do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from openai import AsyncOpenAI

from storage.ids import new_id

ROOT = Path(__file__).parent.parent.parent
T = TypeVar("T")

#: Small enough for a test: see examples/demo for numbers that one can watch.
ROLLOUT = {
    "shadow": {"share": 1.0, "min_pairs": 30, "max_wait_seconds": 120},
    "canary": [
        {"weight": 0.10, "min_units": 12, "max_wait_seconds": 120},
        {"weight": 0.25, "min_units": 25, "max_wait_seconds": 120},
        {"weight": 0.50, "min_units": 25, "max_wait_seconds": 120},
        {"weight": 1.00, "min_units": 25, "max_wait_seconds": 120},
    ],
    "tolerances": {"latency_ratio": 3.0},
    "due_seconds": 60,
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Installation:
    """``meta-agent up --demo`` with its own home, ports and configuration."""

    def __init__(self, home: Path, rps: float = 25.0) -> None:
        ports = free_ports(6)
        self.home = home
        self.gateway, self.control = (f"http://127.0.0.1:{port}" for port in ports[:2])
        self.providers = dict(zip(("lab", "thrift", "bargain", "rough"), ports[2:], strict=True))
        self.config = home / "meta-agent.yaml"
        self._write_config(ports)
        self._rps = rps
        self.process: subprocess.Popen[bytes] | None = None

    def _write_config(self, ports: list[int]) -> None:
        document = yaml.safe_load((ROOT / "examples/demo/meta-agent.yaml").read_text())
        for provider in document["providers"]:
            provider["base_url"] = f"http://127.0.0.1:{self.providers[provider['name']]}/v1"
        document["use_cases"][0]["suite"] = str(ROOT / "examples/story_teller/suite.yaml")
        document |= {
            "policies": str(ROOT / "examples/demo/policies.yaml"),
            "rollout": ROLLOUT,
            "gateway": {"port": ports[0]},
            "control": {"port": ports[1]},
            "worker": {"poll_seconds": 0.3, "recorded_cases": 20},
        }
        document["agent"] |= {"interval_seconds": 3, "scan_every_seconds": 5}
        self.config.write_text(yaml.safe_dump(document))

    @property
    def environment(self) -> dict[str, str]:
        """What the command line needs to find this installation."""
        return {**os.environ, "META_AGENT_HOME": str(self.home), "META_AGENT_CONFIG": str(self.config)}

    def start(self) -> None:
        """Start everything; the supervisor's own output goes to a file."""
        with (self.home / "up.log").open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "meta_agent.cli",
                    "up",
                    "--demo",
                    "--no-approve",
                    "--rps",
                    str(self._rps),
                ],
                env=self.environment,
                cwd=self.home,
                stdout=output,
                stderr=output,
            )

    def stop(self) -> int:
        """Ctrl-C, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(40)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as an operator would."""
        return subprocess.run(
            [sys.executable, "-m", "meta_agent.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def pid_of(self, role: str) -> int | None:
        """The process id of a role under this supervisor."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if argv[-2:-1] == [role.encode()]:
                    return int(child)
        return None

    def logs(self) -> str:
        """The ends of all logs, for a failure's message."""
        files = [self.home / "up.log", *sorted((self.home / "logs").glob("*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2500:]}" for file in files)


@contextlib.contextmanager
def running(home: Path) -> Iterator[Installation]:
    """An installation that is up, and down again afterwards."""
    installation = Installation(home)
    installation.start()
    try:
        yield installation
    finally:
        print(installation.logs())  # shown by pytest when the test failed
        if installation.process is not None and installation.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                installation.stop()
            installation.process.kill()
            installation.process.wait()


async def until(
    what: str, look: Callable[[], Awaitable[T | None]], seconds: float = 60.0, every: float = 0.1
) -> T:
    """The first thing that a look finds; connection errors count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            found = await look()
            if found:
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"gave up waiting until {what}")
        await asyncio.sleep(every)


async def keys_made(installation: Installation) -> None:
    """Wait until the demo's players have their keys."""

    async def look() -> bool:
        return (installation.home / "keys" / "night-shift.key").exists()

    await until("the keys are made", look, 60)


class Operator:
    """Somebody with a key of the control API."""

    def __init__(self, installation: Installation, key_file: str) -> None:
        self._key = (installation.home / "keys" / key_file).read_text().strip()
        self.http = httpx.AsyncClient(
            base_url=f"{installation.control}/api/v1/",
            headers={"authorization": f"Bearer {self._key}"},
            timeout=10,
            trust_env=False,
        )

    async def __aenter__(self) -> Operator:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def get(self, path: str, **query: Any) -> Any:
        """A document, or None while the server says that it is not there yet."""
        answer = await self.http.get(path, params=query)
        if answer.status_code in (404, 502, 503):
            return None
        answer.raise_for_status()
        return answer.json()

    async def rollout_of(self, model: str) -> dict[str, Any] | None:
        """The newest rollout of a candidate."""
        found = await self.get("rollouts") or []
        return next((each for each in found if each["candidate"]["model"] == model), None)

    async def in_state(self, model: str, *states: str, weight: float = 0.0) -> dict[str, Any]:
        """Wait until a candidate's rollout is there; any other end is a failure."""

        async def look() -> dict[str, Any] | None:
            rollout = await self.rollout_of(model)
            if rollout is None:
                return None
            astray = rollout["state"] in ("rolled_back", "aborted", "paused")
            if astray and rollout["state"] not in states:
                raise AssertionError(f"the rollout of {model} went another way: {rollout}")
            return rollout if rollout["state"] in states and rollout["weight"] >= weight else None

        return await until(f"the rollout of {model} is {' or '.join(states)} at {weight}", look, 120)

    async def approve_next(self) -> dict[str, Any]:
        """Wait for a proposal in the queue, and say yes to exactly that."""

        async def look() -> dict[str, Any] | None:
            waiting = await self.get("approvals") or []
            return waiting[0] if waiting else None

        proposal = await until("a proposal waits for approval", look, 90)
        await self.say_yes(proposal)
        return proposal

    async def say_yes(self, proposal: dict[str, Any]) -> None:
        """Approve exactly what was listed."""
        answer = await self.http.post(
            "approvals",
            json={
                "proposal_id": proposal["id"],
                "word": "approve",
                "binding_digest": proposal["binding_digest"],
                "comment": "evidence read",
            },
        )
        answer.raise_for_status()


class Readers:
    """Probes with the unmodified SDK; who really answered is read from the provider's own fingerprint."""

    def __init__(self, installation: Installation) -> None:
        key = (installation.home / "keys" / "story-teller.key").read_text().strip()
        self.client = AsyncOpenAI(base_url=f"{installation.gateway}/v1", api_key=key, max_retries=0)

    async def __aenter__(self) -> Readers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, conversation: str | None = None) -> str:
        """The model that answered one request of a conversation."""
        answer = await self.client.chat.completions.create(
            model="story-teller",
            messages=[
                {"role": "user", "content": "Tell a story about a shy owl named Otto. Finish with 'The end.'"}
            ],
            metadata={"conversation_id": conversation or new_id("probe")},
        )
        assert answer.model == "story-teller"
        return (answer.system_fingerprint or "").removeprefix("fp_")

    async def ask_many(self, count: int) -> Counter[str]:
        """Who answered how many of that many new conversations."""
        return Counter(await asyncio.gather(*(self.ask() for _ in range(count))))
