"""What stands behind a worker's fast path: routes come from here, records and feedback go here.

Ties the journal, the route table and the link to the sidecar together. Knows no database and nothing
of requests.

    office = BackOffice(config, SidecarProcess())       # tests: InProcessSidecar(database)
    await office.start()                                # routes are there, if there are any
    office.journal.record(INTERACTION, row)             # never raises, never waits
    office.table.snapshot                               # None: no routes at all, answer 503
    office.watch(["key:app"]); office.on_totals = ...   # usage for budgets
    await office.close()                                # after the last record
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import structs

from gateway.journal import Journal, segment_numbers
from gateway.route_table import RouteTable
from gateway.settings import GatewayConfig
from gateway.sidecar.messages import (
    Applied,
    Changed,
    Closed,
    Configure,
    FromSidecar,
    Replaced,
    Started,
    Status,
    SubjectTotal,
    Took,
    Totals,
    Unwritten,
    Watch,
)
from gateway.sidecar_link import SidecarLink

_log = logging.getLogger(__name__)

_FIRST_ROUTES_SECONDS = 8.0  #: how long the start waits for the sidecar to read the routes, or to fail
_LAST_SHIPMENT_SECONDS = 5.0
_COUNTS = ("shipped", "torn", "refused", "exported", "not_exported")


class BackOffice:
    """One worker's journal, routes and sidecar. ``start`` it before the first request."""

    def __init__(self, config: GatewayConfig, link: SidecarLink) -> None:
        self._config = config
        self._link = link
        self.journal = Journal(
            config.spool_dir, flush_rows=config.flush_rows, on_closed=lambda number: link.send(Closed(number))
        )
        self.table = RouteTable(config.spool_dir)
        #: Called with each reading of the usage of the watched subjects, about once a second.
        self.on_totals: Callable[[Totals], None] = lambda totals: None
        self._heard = asyncio.Event()  # of routes, or that there are none to be had
        self._tick: asyncio.Task[None] | None = None
        self._status = Status()
        self._earlier = Status()  # counts of sidecars that ended
        self._own: dict[str, SubjectTotal] = {}  # as last reported, with what earlier sidecars stored
        self._own_earlier: dict[str, SubjectTotal] = {}
        self._starts = 0

    # -- life

    async def start(self) -> None:
        """Start the sidecar and wait a moment for routes: the newest, else the last good ones."""
        self.table.load_last_good()
        await self._link.start(self._configure(), self._receive)
        self._link.send(Closed(self.journal.closed_up_to))
        self._tick = asyncio.create_task(self._flush())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ROUTES_SECONDS):
                await self._heard.wait()

    async def close(self) -> None:
        """After the last record: ship what is left, for a few seconds at most, and let go of everything.

        What could not be shipped stays on disk and is shipped after the next start.
        """
        if self._tick is not None:
            self._tick.cancel()
            await asyncio.gather(self._tick, return_exceptions=True)
        self.journal.close()
        while self._hand_over():
            pass
        await self._link.close(_LAST_SHIPMENT_SECONDS)
        self.journal.release()

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(self._config.flush_seconds)
            try:
                self.journal.rotate_due()
                if not self.journal.handed_over:  # one piece after the other: the sidecar may be in trouble
                    self._hand_over()
            except Exception:
                _log.exception("the journal could not be flushed; that is tried again")

    def _hand_over(self) -> bool:
        piece = self.journal.hand_over()
        if piece is None:
            return False
        number, lines = piece
        self._link.send(Unwritten(number, [line.decode() for line in lines]))
        return True

    def _configure(self) -> Configure:
        config = self._config
        return Configure(
            database_url=config.database_url,
            spool_dir=str(config.spool_dir),
            gateway_id=config.gateway_id,
            providers={name: provider.kind for name, provider in config.providers.items()},
            route_poll_seconds=config.route_poll_seconds,
            flush_rows=config.flush_rows,
            finish_seconds=_LAST_SHIPMENT_SECONDS,
            telemetry=config.telemetry,
            log_level=logging.getLogger().getEffectiveLevel(),
            log_format=config.log_format,
        )

    # -- usage

    def watch(self, subjects: Iterable[str]) -> None:
        """Whose usage ``on_totals`` is told of, instead of whose it was before."""
        self._link.send(Watch(sorted(subjects)))

    # -- what the sidecar says

    def _receive(self, message: FromSidecar) -> None:
        match message:
            case Replaced() | Changed():
                self._link.send(Applied(self.table.apply(message)))
                self._heard.set()
            case Status():
                self._note(message)
            case Took(number):
                self.journal.took(number)
                self._hand_over()
            case Totals():
                self.on_totals(self._with_earlier(message))
            case Started():
                self._begin_anew()

    def _note(self, status: Status) -> None:
        self._status = status
        self.table.note(status)
        if status.routes_failing is not None:
            self._heard.set()

    def _begin_anew(self) -> None:
        """Another sidecar counts from nothing; what those before it did stays counted."""
        self._starts += 1
        self._earlier = self._status_of_all()
        self._status = structs.replace(self._status, **dict.fromkeys(_COUNTS, 0))
        self._own_earlier = dict(self._own)

    def _status_of_all(self) -> Status:
        sums = {name: getattr(self._earlier, name) + getattr(self._status, name) for name in _COUNTS}
        return structs.replace(self._status, **sums)

    def _with_earlier(self, message: Totals) -> Totals:
        """The totals, with the own share counted since this worker's start."""
        totals = [_sum(each, self._own_earlier.get(each.subject)) for each in message.totals]
        self._own.update({each.subject: each for each in totals})
        return structs.replace(message, totals=totals)

    # -- for readiness and metrics

    def readiness(self) -> dict[str, Any]:
        """What is degraded. Why stands in the log: anybody may ask, and the reasons name hosts and paths."""
        snapshot, journal, table = self.table.snapshot, self.journal, self.table
        return {
            "routes_version": snapshot.version if snapshot else None,
            "routes_age_seconds": table.age_seconds,
            "routes_failing": table.failing is not None,
            "journal_failing": journal.failing is not None,
            "journal_lost": journal.lost,
            "journal_segments_waiting": self._segments_waiting(),
            "database_failing": self._status.database_failing is not None,
            "sidecar_failing": self._link.failing is not None,
        }

    def gauges(self) -> list[tuple[str, str, float]]:
        """(name, what it means, value) of everything here that is counted."""
        snapshot, journal, age = self.table.snapshot, self.journal, self.table.age_seconds
        status = self._status_of_all()
        counted: list[tuple[str, str, float]] = [
            ("journal_open_rows", "Rows not shipped yet in the open segment.", journal.open_rows),
            ("journal_segments", "Closed segments that wait to be shipped.", self._segments_waiting()),
            ("journal_unwritten", "Rows that are nowhere but in memory.", journal.unwritten),
            ("journal_write_failures", "Rows that the disk refused.", journal.failures),
            ("journal_lost", "Rows that found no place at all.", journal.lost),
            ("journal_shipped", "Rows stored in the database.", status.shipped),
            ("journal_torn", "Incomplete lines that were skipped.", status.torn),
            ("journal_refused", "Rows that the database refused.", status.refused),
            ("telemetry_exported", "Spans that the collector took.", status.exported),
            ("telemetry_not_exported", "Spans that were not exported.", status.not_exported),
            ("routes_version", "Version served.", snapshot.version if snapshot else 0),
            ("routes_age_seconds", "Since the routes were read.", -1 if age is None else age),
            ("sidecar_starts", "Processes started to ship the journal.", self._starts),
        ]
        return [(f"meta_agent_{name}", meaning, value) for name, meaning, value in counted]

    def _segments_waiting(self) -> int:
        if self._link.failing is None:
            return self._status.waiting
        return len(segment_numbers(self._config.spool_dir)) - (self.journal.open_rows > 0)


def _sum(total: SubjectTotal, earlier: SubjectTotal | None) -> SubjectTotal:
    if earlier is None:
        return total
    return structs.replace(
        total,
        own_requests=total.own_requests + earlier.own_requests,
        own_tokens=total.own_tokens + earlier.own_tokens,
        own_cost_usd=total.own_cost_usd + earlier.own_cost_usd,
    )
