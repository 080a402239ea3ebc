"""How many requests a bad candidate gets before the route goes back, and how often a good one is sent back.

    python -m benchmarks.rollback [--runs 200]

A seeded simulation of the router's coin with the product's own analysis, looked at after every 20 requests,
beside the two rules that one would write instead: an error-rate threshold over a sliding window of the
candidate's requests (the usual rollback rule of gateways), and the same compared with stable's window.
Conversations have three requests and a personal error rate, as readers have: their requests are not
independent, which is what fools rules that count requests.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipelines.rollout.analysis import analyse_canary
from pipelines.rollout.plan import CanaryStep, RolloutPlan
from pipelines.rollout.votes import Row, votes_from
from storage.vocabulary import Arm, InteractionStatus, Phase

START = datetime(2026, 1, 1, tzinfo=UTC)
HORIZON = 4000  # requests until a run is called unharmed
LOOK_EVERY = 20


@dataclass(frozen=True)
class World:
    """What is true of the two arms."""

    name: str
    stable: float  #: mean error rate
    candidate: float
    weight: float


WORLDS = (
    World("equal, 1 %", 0.01, 0.01, 0.10),
    World("equal, 5 %", 0.05, 0.05, 0.10),
    World("equal, 1 %", 0.01, 0.01, 0.50),
    World("outage, 50 %", 0.01, 0.50, 0.10),
    World("outage, 50 %", 0.01, 0.50, 0.25),
    World("bad, 10 %", 0.01, 0.10, 0.10),
    World("bad, 10 %", 0.01, 0.10, 0.50),
    World("worse, 3 %", 0.01, 0.03, 0.50),
)


def traffic(world: World, luck: random.Random) -> list[Row]:
    """Requests in the order in which they were drawn."""
    rows: list[Row] = []
    while len(rows) < HORIZON:
        arm = Arm.CANDIDATE if luck.random() < world.weight else Arm.STABLE
        mean = world.candidate if arm is Arm.CANDIDATE else world.stable
        # A beta distribution with this mean: some readers hardly ever see an error, some often do.
        rate = luck.betavariate(mean * 5, (1 - mean) * 5)
        unit = f"c{len(rows)}"
        for _ in range(3):
            failed = luck.random() < rate
            status = InteractionStatus.ERROR if failed else InteractionStatus.OK
            at = START + timedelta(seconds=len(rows))
            rows.append(Row(unit=unit, arm=arm, weight=world.weight, status=status, at=at, latency_ms=100.0))
    return rows


def product(rows: list[Row], world: World) -> int | None:
    """The product's own analysis at one step: requests until it says failed."""
    plan = RolloutPlan(
        shadow=None, canary=(CanaryStep(world.weight, 10**6, 1e9), CanaryStep(1.0, 10**6, 1e9))
    )
    for seen in range(LOOK_EVERY, len(rows), LOOK_EVERY):
        recent = rows[seen - LOOK_EVERY : seen]
        # The evidence against a candidate only grows with one of its failures.
        if not any(row.failed and row.arm is Arm.CANDIDATE for row in recent):
            continue
        if analyse_canary(votes_from(rows[:seen]), plan, 0, 0.0).phase is Phase.FAILED:
            return seen
    return None


def threshold(rows: list[Row], world: World) -> int | None:
    """More than 5 % errors among the last 50 requests of the candidate, of at least 20."""
    window: deque[bool] = deque(maxlen=50)
    for seen, row in enumerate(rows, start=1):
        if row.arm is Arm.CANDIDATE:
            window.append(row.failed)
            if len(window) >= 20 and sum(window) / len(window) > 0.05:
                return seen
    return None


def relative(rows: list[Row], world: World) -> int | None:
    """Candidate's window twice as bad as stable's, and above 2 %."""
    windows = {Arm.CANDIDATE: deque[bool](maxlen=100), Arm.STABLE: deque[bool](maxlen=100)}
    for seen, row in enumerate(rows, start=1):
        windows[row.arm].append(row.failed)
        candidate, stable = windows[Arm.CANDIDATE], windows[Arm.STABLE]
        if len(candidate) >= 20 and len(stable) >= 20:
            rate, control = sum(candidate) / len(candidate), sum(stable) / len(stable)
            if rate > 0.02 and rate > 2 * control:
                return seen
    return None


RULES: dict[str, Callable[[list[Row], World], int | None]] = {
    "this product": product,
    "threshold 5 % of 50": threshold,
    "2x stable, 100 each": relative,
}


def main() -> None:
    """Print one line per world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    print(f"\nRequests (all arms) until the route goes back; {options.runs} runs of {HORIZON} requests,")
    print("conversations of 3. For equal candidates every rollback is a false one: its share is shown.")
    header = " ".join(f"{name:>26}" for name in RULES)
    print(f"{'candidate':<14} {'weight':>6} {header}")
    for world in WORLDS:
        runs = [traffic(world, random.Random(f"{world}{number}")) for number in range(options.runs)]
        cells = [_cell([rule(rows, world) for rows in runs], world) for rule in RULES.values()]
        print(f"{world.name:<14} {world.weight:>6.0%} " + " ".join(f"{cell:>26}" for cell in cells))


def _cell(found: list[int | None], world: World) -> str:
    hits = sorted(each for each in found if each is not None)
    share = len(hits) / len(found)
    if world.stable == world.candidate:
        return f"{share:.0%} false"
    if not hits:
        return "never"
    return f"{statistics.median(hits):.0f}, p90 {hits[int(len(hits) * 0.9)]}, {share:.0%} found"


if __name__ == "__main__":
    main()
