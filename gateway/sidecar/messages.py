"""What a worker and its sidecar say to each other: one JSON line for each message.

Plain values. Knows neither process, and loads no database driver.
"""

from __future__ import annotations

import logging
from datetime import date
from decimal import Decimal

import msgspec

from gateway.settings import TelemetryConfig
from storage.routing import RoutingDelta, RoutingSnapshot

#: The longest line: all routes and keys of a large installation are one message.
LINE_BYTES = 256 * 1024 * 1024

#: In the spool directory: the sidecar writes it after each change, a worker reads it at its start.
LAST_GOOD = "last-good-routes.json"


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """One line; its ``type`` is the name of its class."""


# -- from the worker


class Configure(Message, frozen=True):
    """The first line: everything that a sidecar needs to know. Goes over the pipe, for it holds secrets."""

    database_url: str
    spool_dir: str
    gateway_id: str
    providers: dict[str, str] = {}  #: name -> kind, for the names in traces
    route_poll_seconds: float = 1.0
    full_load_seconds: float = 60.0  #: after which everything is read anew, whatever was heard meanwhile
    flush_rows: int = 500  #: of one batch
    usage_seconds: float = 1.0  #: between two readings of the totals
    finish_seconds: float = 5.0  #: for shipping what is left once the worker has gone
    telemetry: TelemetryConfig | None = None
    log_level: int = logging.INFO
    log_format: str = "text"  #: or json

    def __repr__(self) -> str:
        return f"Configure(gateway_id={self.gateway_id!r})"


class Applied(Message, frozen=True):
    """The worker serves by that version."""

    version: int


class Closed(Message, frozen=True):
    """Segments up to that number are whole; the next one is being written."""

    up_to: int


class Unwritten(Message, frozen=True):
    """Records that the disk refused. The worker keeps them until it is told ``Took``."""

    number: int
    lines: list[str]


class Watch(Message, frozen=True):
    """Whose usage is wanted from now on, instead of whose was before."""

    subjects: list[str]


# -- from the sidecar


class Started(Message, frozen=True):
    """The first line: a new sidecar, whose counts begin at nothing."""


class Replaced(Message, frozen=True):
    """All routes; the first that is heard of them."""

    snapshot: RoutingSnapshot


class Changed(Message, frozen=True):
    """What has changed since the last ``Replaced`` or ``Changed``."""

    delta: RoutingDelta


class Status(Message, frozen=True):
    """How the sidecar fares, since its start. Said each second, and at once when something turns."""

    shipped: int = 0  #: rows stored
    torn: int = 0  #: incomplete lines that were skipped
    refused: int = 0  #: rows that the database refuses, set aside
    waiting: int = 0  #: closed segments that are not stored yet
    database_failing: str | None = None  #: why nothing could be stored lately; None: all is well
    routes_failing: str | None = None  #: why the routes could not be read lately; None: all is well
    routes_age_seconds: float | None = None  #: since they were read; None: never
    exported: int = 0  #: spans that the collector took
    not_exported: int = 0  #: spans that it did not, or that found no place in the queue


class Took(Message, frozen=True):
    """The records of that ``Unwritten`` are stored."""

    number: int


class SubjectTotal(msgspec.Struct, frozen=True):
    """What one subject has used, in all gateways' rows, and how much of it this sidecar stored."""

    subject: str
    day_requests: int
    day_tokens: int
    day_cost_usd: Decimal
    month_cost_usd: Decimal
    own_requests: int  #: since the start, not of the day
    own_tokens: int
    own_cost_usd: Decimal


class Totals(Message, frozen=True):
    """The usage of the watched subjects, as one look at the database had it."""

    day: date  #: of the ``day_`` figures, UTC
    totals: list[SubjectTotal]


FromWorker = Configure | Applied | Closed | Unwritten | Watch
FromSidecar = Started | Replaced | Changed | Status | Took | Totals

_ENCODER = msgspec.json.Encoder()
_FROM_WORKER: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
_FROM_SIDECAR: msgspec.json.Decoder[FromSidecar] = msgspec.json.Decoder(FromSidecar)


def encode(message: FromWorker | FromSidecar) -> bytes:
    """The line of a message, with its end."""
    return _ENCODER.encode(message) + b"\n"


def decode_from_worker(line: bytes) -> FromWorker:
    """What a worker said. Raises ``msgspec.DecodeError`` on anything else."""
    return _FROM_WORKER.decode(line)


def decode_from_sidecar(line: bytes) -> FromSidecar:
    """What a sidecar said. Raises ``msgspec.DecodeError`` on anything else."""
    return _FROM_SIDECAR.decode(line)
