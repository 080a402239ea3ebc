"""The load generator without a compiler: same arguments and same report as ``native/load.c``, in asyncio."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import re
import sys
import time
from pathlib import Path

_FIRST_TEXT = re.compile(rb'"content": ?"[^"]')


class Client:
    """Connections, requests sent in turn, and what came of them."""

    def __init__(self, port: int, bodies: Path, key: str) -> None:
        self.port = port
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        self.requests = [(head % (len(line), line)).encode() for line in bodies.read_text().splitlines()]
        self.sent = self.good = 0
        self.failed: collections.Counter[str] = collections.Counter()
        self.latencies: list[int] = []
        self.firsts: list[int] = []
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, due: float) -> None:
        """One request, from the moment that it was due."""
        request = self.requests[self.sent % len(self.requests)]
        self.sent += 1
        try:
            connection = (
                self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
            )
            connection[1].write(request)
            first = await self._read(connection[0])
        except (OSError, asyncio.IncompleteReadError) as error:
            self.failed[type(error).__name__] += 1
            return
        except ValueError as error:
            connection[1].close()
            self.failed[str(error)] += 1
            return
        self.idle.append(connection)
        self.good += 1
        self.latencies.append(int((time.perf_counter() - due) * 1e6))
        self.firsts.append(int((first - due) * 1e6))

    async def _read(self, reader: asyncio.StreamReader) -> float:
        """When the first text was there; raises ValueError for anything but a whole good answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise ValueError(f"status {head[9:12].decode(errors='replace')}")
        if length := re.search(rb"content-length: (\d+)", head, re.I):
            await reader.readexactly(int(length[1]))
            return time.perf_counter()
        first, whole = 0.0, b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            whole += (await reader.readexactly(size + 2))[:-2]
            if not first and _FIRST_TEXT.search(whole):
                first = time.perf_counter()
        await reader.readexactly(2)
        if b"[DONE]" not in whole:
            raise ValueError("cut short")
        return first

    async def closed(self, connections: int, until: float, limit: int) -> None:
        """Each connection asks again as soon as it was answered."""

        async def one() -> None:
            while time.perf_counter() < until and (not limit or self.sent < limit):
                await self.ask(time.perf_counter())

        await asyncio.gather(*(one() for _ in range(connections)))

    async def open(self, rate: float, until: float) -> None:
        """Requests at random moments, whatever becomes of those before."""
        due, tasks = time.perf_counter(), []
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.ensure_future(self.ask(due)))
            due += random.expovariate(rate)
        await asyncio.gather(*tasks)


async def main(
    port: str, bodies: str, key: str, connections: str, seconds: str, rate: str, limit: str
) -> None:
    """See ``native/load.c``."""
    client, begun = Client(int(port), Path(bodies), key), time.perf_counter()
    until = begun + float(seconds)
    if float(rate):
        await client.open(float(rate), until)
    else:
        await client.closed(int(connections), until, int(limit))
    report = {
        "sent": client.sent,
        "good": client.good,
        "seconds": time.perf_counter() - begun,
        "failed": client.failed,
        "latency_us": client.latencies,
        "first_us": client.firsts,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(*sys.argv[1:]))
