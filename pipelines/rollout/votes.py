"""From logged rows to votes: one per unit of assignment, and pairs for the shadow step.

The arm is the one that the router's coin drew, not the one that answered in the end: a
candidate whose failures are answered by stable would look clean otherwise. Knows nothing of
what the votes are used for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from storage.vocabulary import Arm, InteractionStatus

#: Not an arm's doing: the caller went away, or nobody was asked.
_UNCOUNTED = frozenset({InteractionStatus.CANCELLED, InteractionStatus.REJECTED})


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the analysis needs of one interaction."""

    unit: str  #: request, conversation or user id, as the plan's assignment unit says
    arm: Arm  #: the arm that was drawn
    weight: float  #: the candidate's weight when the arm was drawn
    status: InteractionStatus
    at: datetime  #: when the arm was drawn, not when the answer ended
    latency_ms: float | None = None
    cost_usd: float | None = None
    finding: bool = False  #: a detector found something in the output
    fell_back: bool = False  #: the drawn arm failed and another one answered
    pair: str | None = None  #: id shared by a live request and its shadow copy

    @property
    def counted(self) -> bool:
        """Whether the row says anything of its arm."""
        return self.status not in _UNCOUNTED

    @property
    def failed(self) -> bool:
        """The drawn arm failed, whoever answered in the end."""
        return self.fell_back or self.status is InteractionStatus.ERROR

    @property
    def violated(self) -> bool:
        """The drawn arm's output was unsafe. A fallback's output is not its doing."""
        return not self.fell_back and (self.finding or self.status is InteractionStatus.BLOCKED)

    @property
    def clean(self) -> bool:
        """Answered in full by the drawn arm: only then do latency and cost mean something."""
        return self.status is InteractionStatus.OK and not self.fell_back


@dataclass(frozen=True)
class Draw:
    """One toss of the router's coin."""

    arm: Arm
    weight: float
    at: datetime

    @classmethod
    def of(cls, row: Row) -> Draw:
        """The toss behind a row."""
        return cls(row.arm, row.weight, row.at)


@dataclass(frozen=True)
class Vote:
    """The one vote of a unit: its first failure or violation, else its latest row so far.

    A unit keeps its side only while it is pinned; when the weight grows some move from stable
    to the candidate. Every metric therefore uses the coin that held for the very row it is
    taken from, and flags are only joined from rows of that same coin.
    """

    unit: str
    arm: Arm
    weight: float
    at: datetime
    failed: bool
    violated: bool
    first: Draw  #: how the unit came in: what the traffic split is checked on
    scored: Draw | None = None  #: the first clean answer, which latency and cost are taken from
    latency_ms: float | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class Pair:
    """The same request, answered by both."""

    unit: str
    at: datetime
    stable: Row
    candidate: Row

    @property
    def clean(self) -> bool:
        """Both answered in full."""
        return self.stable.clean and self.candidate.clean


def votes_from(rows: Iterable[Row]) -> tuple[Vote, ...]:
    """One vote for each unit, in the order in which the votes were cast.

    Left out are shadow rows, whose answers nobody saw, and rows from before the first canary
    step, when there was no coin to toss. The vote of a unit is final once it
    failed; latency and cost are those of its first clean answer and never change.
    """
    units: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.counted and row.arm is not Arm.SHADOW and row.weight > 0:
            units[row.unit].append(row)
    votes = [_vote(unit, sorted(own, key=lambda row: row.at)) for unit, own in units.items()]
    return tuple(sorted(votes, key=lambda vote: (vote.at, vote.unit)))


def _vote(unit: str, rows: list[Row]) -> Vote:
    decisive = next((row for row in rows if row.failed or row.violated), rows[-1])
    same_coin = [row for row in rows if row.arm is decisive.arm and row.weight == decisive.weight]
    scored = next((row for row in rows if row.clean), None)
    return Vote(
        unit=unit,
        arm=decisive.arm,
        weight=decisive.weight,
        at=decisive.at,
        failed=any(row.failed for row in same_coin),
        violated=any(row.violated for row in same_coin),
        first=Draw.of(rows[0]),
        scored=Draw.of(scored) if scored else None,
        latency_ms=scored.latency_ms if scored else None,
        cost_usd=scored.cost_usd if scored else None,
    )


def pairs_from(rows: Iterable[Row]) -> tuple[Pair, ...]:
    """Join live requests with their shadow copies; a copy that is not logged yet is no pair."""
    live: dict[str, Row] = {}
    shadow: dict[str, Row] = {}
    for row in rows:
        if row.pair is not None and row.counted:
            (shadow if row.arm is Arm.SHADOW else live)[row.pair] = row
    both = [Pair(live[key].unit, live[key].at, live[key], shadow[key]) for key in live.keys() & shadow.keys()]
    return tuple(sorted(both, key=lambda pair: (pair.at, pair.unit, pair.stable.pair or "")))
