"""What the stories told over HTTP share: rules that have arrived, rows that are there, a moodier provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from storage import identities, use_cases
from storage.routing import RoutingSnapshot
from tests.gateway.conftest import SECRET, USE_CASE, Fleet, Running, until
from tests.gateway.fake_upstream import FakeUpstream, _chunk, _event, _write

MESSAGES: Any = [{"role": "user", "content": "tell me of the sea"}]
BODY: Any = {"model": USE_CASE, "messages": MESSAGES}
#: What one answer of the loopback provider costs, and how many tokens it takes.
COST, TOKENS = 0.00002, 15


async def arrived(
    running: Running, condition: Callable[[RoutingSnapshot], Any], seconds: float = 5.0
) -> None:
    """Wait until the gateway serves by what the condition looks for."""

    async def has() -> bool:
        snapshot = running.app.services.table.snapshot
        return snapshot is not None and bool(condition(snapshot))

    await until(has, seconds)


async def serve_by(running: Running, fleet: Fleet, use_case: str = USE_CASE, **rules: Any) -> None:
    """Give a use case other rules of serving, and wait for them."""
    snapshot = running.app.services.table.snapshot
    before = snapshot.servings.get(use_case) if snapshot else None
    async with fleet.db.transaction() as connection:
        assert await use_cases.set_serving(connection, use_case, rules)
    await arrived(running, lambda now: now.servings.get(use_case) != before)


async def key_of(running: Running, fleet: Fleet, key_id: str, *scopes: str, **more: Any) -> str:
    """A key with just these scopes, known to the gateway."""
    async with fleet.db.transaction() as connection:
        token = await identities.ensure_key(
            connection, key_id=key_id, secret=SECRET, name=key_id, scopes=scopes, **more
        )
    await arrived(running, lambda now: key_id in now.keys)
    return token


async def rows_of(fleet: Fleet, count: int, where: str = "true") -> list[dict[str, Any]]:
    """So many rows, once they are there."""

    async def found() -> list[dict[str, Any]]:
        rows = await fleet.rows(where)
        return rows if len(rows) >= count else []

    rows: list[dict[str, Any]] = await until(found)
    assert len(rows) == count, [(row["kind"], row["status"], row["error_type"]) for row in rows]
    return rows


async def metric(running: Running, name: str, **labels: str) -> float:
    """The value of one series; 0 if there is none."""
    text = (await running.http.get("/metrics")).text
    for line in text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(
            f'{k}="{v}"' in line for k, v in labels.items()
        ):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


class MoodyUpstream(FakeUpstream):
    """Also knows these models; ``broken`` and ``gates`` change its mood while it runs.

    moody:<name>          that name; an error 500 while the name is broken
    slow:<name>           that name, once its gate is open
    once:<status>:<wait>  that error once, with that retry-after if any, then echo
    late:<seconds>        an error 500 after that time
    comments              a stream of nothing but comments
    chunk-then-comments   the same after a first piece
    drip                  a stream without an end
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}
        self.times: list[float] = []
        self._refused: set[str] = set()

    def asked(self) -> list[str]:
        """The models in the order in which they were asked."""
        return [request["model"] for request in self.requests]

    async def has_been_asked(self, count: int) -> None:
        async def asked() -> bool:
            return len(self.requests) >= count

        await until(asked)

    async def has_been_cut_off(self, count: int = 1) -> None:
        async def cut_off() -> bool:
            return self.cut_off >= count

        await until(cut_off)

    def gate_of(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> str:
        self.times.append(asyncio.get_running_loop().time())
        kind, _, argument = request["model"].partition(":")
        match kind:
            case "moody" if argument in self.broken:
                return _refuse(writer, 500)
            case "slow":
                await self.gate_of(argument).wait()
            case "once" if argument not in self._refused:
                self._refused.add(argument)
                status, _, wait = argument.partition(":")
                return _refuse(writer, int(status), f"retry-after: {wait}\r\n" if wait else "")
            case "late":
                await asyncio.sleep(float(argument))
                return _refuse(writer, 500)
            case "comments" | "chunk-then-comments" | "drip":
                return await self._go_on(request, kind, writer)
        if kind in ("moody", "slow"):
            request = {**request, "model": f"say:{argument}"}
        return await super()._answer(request, writer)

    async def _go_on(self, request: dict[str, Any], kind: str, writer: asyncio.StreamWriter) -> str:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head)
        if kind != "comments":
            _event(writer, _chunk(request, {"content": "once "}))
        while True:
            if kind == "drip":
                _event(writer, _chunk(request, {"content": "and "}))
            else:
                writer.write(b"7\r\n: wait\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)


def _refuse(writer: asyncio.StreamWriter, status: int, more: str = "") -> str:
    body = json.dumps({"error": {"message": "in a bad mood"}}).encode()
    if status == 200:
        return _write(writer, body)
    head = f"HTTP/1.1 {status} No\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)
    return "keep"
