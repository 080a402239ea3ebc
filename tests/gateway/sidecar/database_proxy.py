"""Stands before the database: carries, freezes what is open, or refuses everybody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sqlalchemy import make_url


class DatabaseProxy:
    """Carries bytes until it is frozen, then only those of connections made later."""

    def __init__(self, url: str) -> None:
        self._to = make_url(url)
        self._open: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.refusing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The address to connect to instead."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield self._to.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        finally:
            server.close()
            self.freeze()
            self._cut()

    def freeze(self) -> None:
        """Connections stay open, and nothing comes through them any more."""
        for task in self._open:
            task.cancel()

    def refuse(self) -> None:
        """The database is away: what is open is cut, and nobody gets in."""
        self.refusing = True
        self._cut()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.close()
            return
        folder = self._to.query.get("host")
        if folder:
            path = f"{folder}/.s.PGSQL.{self._to.port or 5432}"
            back, there = await asyncio.open_unix_connection(path)
        else:
            back, there = await asyncio.open_connection(self._to.host, self._to.port)
        self._writers += [writer, there]
        self._open += [asyncio.ensure_future(_carry(*pair)) for pair in ((reader, there), (back, writer))]


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
