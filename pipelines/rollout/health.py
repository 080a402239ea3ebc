"""Is the release that carries all traffic still doing well? The alert that lets a rollback go alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from pipelines.rollout.betting import FixedRateBet
from storage import interactions
from storage.database import Connection
from storage.vocabulary import InteractionStatus

#: How far back an alert looks.
WINDOW = timedelta(minutes=15)
#: A share of failing or unsafe units up to this is not worth an alert.
TOLERATED_RATE = 0.10
#: Evidence needed: wrong once in a thousand windows at most (Ville's inequality).
THRESHOLD = 1000.0


@dataclass(frozen=True, slots=True)
class Alert:
    """A release fails more often than tolerated, beyond chance."""

    release_id: str
    units: int
    bad_units: int
    e_value: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, for facts and events."""
        return asdict(self)


async def find_alert(connection: Connection, use_case: str, release_id: str, now: datetime) -> Alert | None:
    """The alert on a release in the last minutes of live traffic; None when there is no proof of harm.

    A unit votes once: it is bad as soon as one of its answers failed or was stopped.
    """
    rows = await interactions.live_outcomes(
        connection, use_case=use_case, release_id=release_id, since=now - WINDOW, limit=5000
    )
    units: dict[str, bool] = {}
    for row in reversed(rows):
        if row.status in (InteractionStatus.CANCELLED, InteractionStatus.REJECTED):
            continue
        bad = row.status in (InteractionStatus.ERROR, InteractionStatus.BLOCKED)
        key = row.unit or row.id
        units[key] = units.get(key, False) or bad
    bet = FixedRateBet(TOLERATED_RATE)
    for bad in units.values():
        bet.outcome(failed=bad)
    if bet.e_value < THRESHOLD:
        return None
    return Alert(release_id, len(units), sum(units.values()), bet.e_value)
