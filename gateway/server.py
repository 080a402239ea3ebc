"""The HTTP/1.1 server: a listening socket, its connections, and the clock that watches over them.

A protocol on the event loop and nothing between it and the handlers: a framework would cost more CPU
per request than all that the gateway does with it (``docs/decisions/08``). Knows no path and no key.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from email.utils import formatdate

from gateway.connection import Application, Connection, Limits
from storage.clock import now

_LAST_SECONDS = 2.0  #: for handlers that were broken off to put things in order
_SWEEP_SECONDS = 0.25


class Server:
    """The listening socket, its connections, and the clock that watches over them."""

    def __init__(self, app: Application, limits: Limits | None = None) -> None:
        self.app = app
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.draining = False
        self.date = _http_date()
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._fewer = asyncio.Event()

    def time(self) -> float:
        """The loop's clock."""
        return self.loop.time()

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._fewer.set()

    async def listen(self, sock: socket.socket) -> None:
        """Take connections from a bound socket."""
        self._listeners.append(
            await self.loop.create_server(lambda: Connection(self), sock=sock, backlog=2048)
        )
        if self._sweeper is None:
            self._sweep()

    def _sweep(self) -> None:
        self.date = _http_date()
        moment = self.time()
        for connection in tuple(self.connections):
            if connection.deadline and connection.deadline < moment:
                connection.expire()
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def stop(self, seconds: float) -> None:
        """Take nothing new, let what is under way finish for so long, then break it off."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self.connections):
            connection.wind_up()
        await self._wait_for_the_last(seconds)
        for connection in tuple(self.connections):
            connection.cancel()
        await self._wait_for_the_last(_LAST_SECONDS)
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _wait_for_the_last(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.connections:
                    self._fewer.clear()
                    await self._fewer.wait()


def _http_date() -> bytes:
    return formatdate(now().timestamp(), usegmt=True).encode()


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket for :meth:`Server.listen`; ``shared``: several processes may bind the same port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
