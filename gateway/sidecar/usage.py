"""Tells the worker what its watched subjects have used, in all gateways' rows and in its own.

The two figures come from one moment: nothing is stored between reading the one and the other, so that
the worker can subtract them. Knows no limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal

from gateway.sidecar.messages import SubjectTotal, Totals
from storage import usage
from storage.clock import now
from storage.database import Database, DatabaseUnavailable

_log = logging.getLogger(__name__)

_READ_SECONDS = 5.0


@dataclass(slots=True)
class _Own:
    requests: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)


class UsageBook:
    """What this sidecar has stored, by subject, and the task that reports it."""

    def __init__(self, database: Database, seconds: float, send: Callable[[Totals], None]) -> None:
        self._database = database
        self._seconds = seconds
        self._send = send
        self._own: dict[str, _Own] = {}
        self._subjects: list[str] = []
        self._asked = asyncio.Event()
        self.lock = asyncio.Lock()  #: held while rows are stored and added, and while totals are read

    def add(self, deltas: Iterable[usage.UsageDelta]) -> None:
        """Rows that add so much are stored."""
        for delta in deltas:
            own = self._own.setdefault(delta.subject, _Own())
            own.requests += delta.requests
            own.tokens += delta.tokens
            own.cost_usd += delta.cost_usd

    def watch(self, subjects: list[str]) -> None:
        """Report on these from now on."""
        self._subjects = subjects
        self._asked.set()

    async def run(self) -> None:
        """Report until cancelled; not while nobody is watched."""
        while True:
            if not self._subjects:
                await self._asked.wait()
            self._asked.clear()
            await self._report_once()
            await self._pause()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._asked.wait()

    async def _report_once(self) -> None:
        subjects = self._subjects
        if not subjects:
            return
        try:
            self._send(await self._read(subjects))
        except DatabaseUnavailable:
            pass  # the shipper and the routes say so already
        except Exception:
            _log.exception("usage: the totals cannot be read; the worker goes by what it counts itself")

    async def _read(self, subjects: list[str]) -> Totals:
        day = now().date()
        async with self.lock, asyncio.timeout(_READ_SECONDS), self._database.connection() as connection:
            totals = await usage.totals(connection, subjects, day)
            return Totals(day=day, totals=[self._with_own(total) for total in totals])

    def _with_own(self, total: usage.UsageTotal) -> SubjectTotal:
        own = self._own.get(total.subject) or _Own()
        return SubjectTotal(
            subject=total.subject,
            day_requests=total.day_requests,
            day_tokens=total.day_tokens,
            day_cost_usd=total.day_cost_usd,
            month_cost_usd=total.month_cost_usd,
            own_requests=own.requests,
            own_tokens=own.tokens,
            own_cost_usd=own.cost_usd,
        )
