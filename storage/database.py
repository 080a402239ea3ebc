"""The connection to PostgreSQL: transactions, connections, LISTEN and NOTIFY.

Knows the dialect and the pool, and nothing of what is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator
from datetime import datetime
from typing import Any, LiteralString

import orjson
import psycopg
from sqlalchemy import ARRAY, ColumnElement, Text, any_, bindparam, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

#: A connection inside a transaction, as the questions of this package take it.
Connection = AsyncConnection

#: What callers outside this package catch when the database is away: worth trying again.
DatabaseUnavailable = (
    OperationalError,
    InterfaceError,
    PoolTimeout,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    OSError,
)

#: What they catch when a value is none that PostgreSQL can hold: a NUL in a text, a number beyond 64 bits.
NotStorable = (DataError, psycopg.DataError)


#: A server that falls silent without closing its connections is noticed within half a minute, not hours.
_NOTICE_SILENCE: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def _dumps(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def sqlalchemy_url(url: str) -> str:
    """Any PostgreSQL URL, with the driver that we use."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def conninfo(url: str) -> str:
    """The same URL in libpq's form, for clients that open connections of their own."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class Database:
    """One pool of connections to one PostgreSQL database, bound to the loop that uses it first."""

    def __init__(self, url: str, pool_size: int = 5) -> None:
        self.url = url
        self._engine: AsyncEngine = create_async_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_recycle=1800,
            json_serializer=_dumps,
            json_deserializer=orjson.loads,
            connect_args=_NOTICE_SILENCE,
        )

    @property
    def conninfo(self) -> str:
        """The address in libpq's form."""
        return conninfo(self.url)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back on an exception."""
        with _cancelled_is_cancelled():
            async with self._engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading; whatever it wrote is rolled back."""
        with _cancelled_is_cancelled():
            async with self._engine.connect() as connection:
                yield connection

    async def close(self) -> None:
        """Close every connection of the pool."""
        await self._engine.dispose()

    async def listen(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
        """Notifications as (channel, payload), over a connection of their own, until cancelled.

        The first item is ``("", "")``: the subscription stands, read the state now. Raises a member of
        :data:`DatabaseUnavailable` when the connection breaks; the caller subscribes again.
        """
        connection = await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True, **_NOTICE_SILENCE)
        try:
            for channel in channels:
                await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
            yield "", ""
            async for notice in connection.notifies():
                yield notice.channel, notice.payload
        finally:
            with contextlib.suppress(Exception):
                await asyncio.shield(connection.close())


@contextlib.contextmanager
def _cancelled_is_cancelled() -> Iterator[None]:
    """Keep a task's cancellation from being lost.

    The driver's rollback may fail on a statement that was cancelled under way. Whoever takes that error for a
    database that is away would go on for ever.
    """
    try:
        yield
    except Exception as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise


def storable(words: str) -> str:
    """Words from outside as PostgreSQL takes them: without NUL characters and lone surrogates."""
    return words.replace("\x00", "").encode("utf-8", "replace").decode()


def is_one_of(column: ColumnElement[str], values: Collection[str]) -> ColumnElement[bool]:
    """``column = any(values)``: one parameter however many values, where a statement takes 65,535."""
    return column == any_(bindparam(None, list(values), ARRAY(Text)))


async def notify(connection: AsyncConnection, channel: str, payload: str = "") -> None:
    """Wake the listeners of a channel when this transaction commits."""
    await connection.execute(
        text("select pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload}
    )


async def lock_in_transaction(connection: AsyncConnection, name: str) -> None:
    """Serialise transactions on a name; released at commit or rollback."""
    await connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


async def server_time(connection: AsyncConnection) -> datetime:
    """What the server's clock says now, to hold ours against."""
    moment: datetime = (await connection.execute(text("select clock_timestamp()"))).scalar_one()
    return moment


async def lock_is_held(connection: AsyncConnection, name: str) -> bool:
    """Whether anybody holds a session lock of that name in this database, without trying to take it."""
    query = text(
        "select exists (select from pg_locks where locktype = 'advisory' and objsubid = 1 and granted"
        " and database = (select oid from pg_database where datname = current_database())"
        " and ((classid::bigint << 32) | objid::bigint) = hashtextextended(:name, 0))"
    )
    return bool((await connection.execute(query, {"name": name})).scalar_one())


class SessionLocks:
    """Advisory locks on one connection: they are free again the moment this process dies."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def try_lock(self, name: str) -> bool:
        """Take the lock, or learn that somebody else holds it. A lock is counted: unlock as often."""
        return bool(await self._ask("select pg_try_advisory_lock(hashtextextended(%s, 0))", name))

    async def unlock(self, name: str) -> None:
        """Give the lock back."""
        await self._ask("select pg_advisory_unlock(hashtextextended(%s, 0))", name)

    async def alive(self) -> bool:
        """The connection, and with it every lock, still stands."""
        try:
            await self._connection.execute("select 1")
        except (psycopg.Error, OSError):
            return False
        return True

    async def _ask(self, query: LiteralString, name: str) -> Any:
        row = await (await self._connection.execute(query, (name,))).fetchone()
        return row[0] if row else None


@contextlib.asynccontextmanager
async def session_locks(database: Database) -> AsyncIterator[SessionLocks]:
    """A connection of its own for locks that outlive transactions."""
    connection = await psycopg.AsyncConnection.connect(database.conninfo, autocommit=True, **_NOTICE_SILENCE)
    try:
        yield SessionLocks(connection)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def try_session_lock(database: Database, name: str) -> AsyncIterator[bool]:
    """Hold a lock for the length of the block, or learn that somebody else does."""
    async with session_locks(database) as locks:
        yield await locks.try_lock(name)
