"""The demo's hand of fate and its operator on duty, through public HTTP only.

    python -m meta_agent.demo.director --control http://127.0.0.1:8081 --key ma_live_... \\
        --bargain http://127.0.0.1:9103

When the bargain candidate has earned real traffic, the director makes it ill; when a proposal has
waited long enough for a person, the director is that person. It decides nothing else, and what the
product makes of it is the product's own doing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from storage.clock import now

log = logging.getLogger("meta_agent.demo.director")

ILLNESS: Mapping[str, float] = {"error_rate": 0.5, "unsafe_rate": 0.4}
COMMENT = "approved by the demo's operator on duty"
LONGEST_PAUSE = 10.0


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the director has been told to do."""

    control: str
    key: str
    bargain: str
    model: str = "budget-nano"
    at_weight: float = 0.25  #: the candidate falls ill once it has this share of the traffic
    approve_after: float | None = 20.0  #: seconds that a proposal waits; None: never approve
    interval: float = 1.0


@dataclass
class Memory:
    """What has been done already: each act once."""

    released: bool = False  #: the bargain's model has appeared in its catalogue
    ill: set[str] = field(default_factory=set)  #: rollouts whose candidate was made ill
    settled: set[tuple[str, str]] = field(default_factory=set)  #: (proposal, digest) approved or refused


def find_ripe(rollouts: Sequence[Mapping[str, Any]], script: Script, memory: Memory) -> list[str]:
    """The rollouts whose candidate is the bargain and now has enough real traffic to hurt."""
    return [
        str(rollout["id"])
        for rollout in rollouts
        if (rollout.get("candidate") or {}).get("model") == script.model
        and rollout.get("state") == "canary"
        and float(rollout.get("weight") or 0) >= script.at_weight
        and str(rollout["id"]) not in memory.ill
    ]


def find_due(
    approvals: Sequence[Mapping[str, Any]], script: Script, memory: Memory, at: datetime
) -> list[Mapping[str, Any]]:
    """The proposals that have waited long enough for a person."""
    if script.approve_after is None:
        return []
    return [
        approval
        for approval in approvals
        if (str(approval["id"]), str(approval["binding_digest"])) not in memory.settled
        and _waited(approval, at) >= script.approve_after
    ]


def _waited(approval: Mapping[str, Any], at: datetime) -> float:
    since = datetime.fromisoformat(str(approval.get("waiting_since") or approval["created_at"]))
    return (at - (since if since.tzinfo else since.replace(tzinfo=at.tzinfo))).total_seconds()


def is_time_for_the_bargain(rollouts: Sequence[Mapping[str, Any]], memory: Memory) -> bool:
    """The next model appears once the first candidate has been promoted."""
    return not memory.released and any(rollout.get("state") == "promoted" for rollout in rollouts)


async def release(client: httpx.AsyncClient, script: Script, memory: Memory) -> None:
    """A new, cheaper model appears at a provider, as happens every week."""
    where = f"{script.bargain.rstrip('/')}/_sim/behaviour/{script.model}"
    (await client.patch(where, json={"released": True})).raise_for_status()
    memory.released = True
    log.info("the bargain provider released %s", script.model)


async def make_ill(client: httpx.AsyncClient, script: Script, rollout: str, memory: Memory) -> None:
    """Change the behaviour of the bargain provider for the worse, while it runs."""
    where = f"{script.bargain.rstrip('/')}/_sim/behaviour/{script.model}"
    answer = await client.patch(where, json=dict(ILLNESS))
    answer.raise_for_status()
    memory.ill.add(rollout)
    how = ", ".join(f"{trait} {rate:g}" for trait, rate in ILLNESS.items())
    log.info("rollout %s has %s at its canary: made it ill (%s)", rollout, script.model, how)


async def approve(
    client: httpx.AsyncClient, script: Script, approval: Mapping[str, Any], memory: Memory
) -> None:
    """Give a person's word on exactly the proposal that was listed."""
    word = {
        "proposal_id": approval["id"],
        "word": "approve",
        "binding_digest": approval["binding_digest"],
        "comment": COMMENT,
    }
    answer = await client.post(_api(script, "approvals"), json=word, headers=_authorization(script))
    if answer.status_code >= 500 or answer.status_code in (401, 403, 429):
        answer.raise_for_status()
    # A refusal (expired, decided by someone else, changed since) is final: asking again would not help.
    memory.settled.add((str(approval["id"]), str(approval["binding_digest"])))
    said = "approved" if answer.is_success else f"approval refused with {answer.status_code}"
    log.info("proposal %s (%s): %s", approval["id"], approval.get("tool", "?"), said)


async def play_once(client: httpx.AsyncClient, script: Script, memory: Memory) -> None:
    """Look once at the stage and do what is due."""
    rollouts = await _list(client, script, "rollouts")
    if is_time_for_the_bargain(rollouts, memory):
        await release(client, script, memory)
    for rollout in find_ripe(rollouts, script, memory):
        await make_ill(client, script, rollout, memory)
    if script.approve_after is None:
        return
    for approval in find_due(await _list(client, script, "approvals"), script, memory, now()):
        await approve(client, script, approval, memory)


async def play(script: Script, stopped: asyncio.Event) -> None:
    """Play until stopped; a control plane that is down is waited for, ever more patiently."""
    memory = Memory()
    pause = script.interval
    # trust_env off: a proxy of the surroundings has no part in a play on one machine.
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        while not stopped.is_set():
            try:
                await play_once(client, script, memory)
                pause = script.interval
            except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
                pause = min(pause * 2, LONGEST_PAUSE)
                log.warning("%s: %s; again in %.0f s", type(error).__name__, error, pause)
            await _rest(stopped, pause)


async def _rest(stopped: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopped.wait(), seconds)
    except TimeoutError:
        return


async def _list(client: httpx.AsyncClient, script: Script, what: str) -> list[Mapping[str, Any]]:
    answer = await client.get(_api(script, what), headers=_authorization(script))
    answer.raise_for_status()
    body = answer.json()
    if not isinstance(body, list):
        raise ValueError(f"/api/v1/{what} is not a list")
    return body


def _api(script: Script, what: str) -> str:
    return f"{script.control.rstrip('/')}/api/v1/{what}"


def _authorization(script: Script) -> dict[str, str]:
    return {"authorization": f"Bearer {script.key}"}


def read_script(arguments: Sequence[str] | None = None) -> Script:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="meta_agent.demo.director", description="Directs the demo.")
    parser.add_argument("--control", default="http://127.0.0.1:8081", help="URL of the control plane")
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--key", help="an operator's key that may approve")
    keys.add_argument("--key-file", type=Path, help="a file that holds it, out of the process list")
    parser.add_argument("--bargain", default="http://127.0.0.1:9103", help="URL of the bargain provider")
    parser.add_argument("--at-weight", type=float, default=0.25, help="when the bargain falls ill (0..1)")
    parser.add_argument("--approve-after", type=float, default=20.0, help="seconds a proposal waits")
    parser.add_argument("--no-approve", action="store_true", help="leave approvals to people")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks")
    options = parser.parse_args(arguments)
    return Script(
        control=options.control,
        key=options.key or options.key_file.read_text().strip(),
        bargain=options.bargain,
        at_weight=options.at_weight,
        approve_after=None if options.no_approve else options.approve_after,
        interval=options.interval,
    )


async def _main(script: Script) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    log.info("watching %s", script.control)
    await play(script, stopped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Direct the demo until told to stop."""
    script = read_script(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s director: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(_main(script))
    return 0


if __name__ == "__main__":
    sys.exit(main())
