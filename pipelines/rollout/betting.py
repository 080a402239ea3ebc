"""Betting e-processes: evidence against a candidate that may be looked at after every request.

Each class is a bettor whose wealth starts at 1 and, while the candidate is no worse than
stable, is not expected to grow, whatever the traffic does; by Ville's inequality it then
reaches 1/alpha with probability at most alpha, however often somebody looks. Only the
router's coin is assumed to be random, so daily rhythm, shared incidents and a changing
weight cancel out: a failure is asked which arm drew it, never how many failures there are.

Knows nothing of rollouts, rows or clocks. Sources: Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 86(1), 2024; Grünwald, de Heide and
Koolen, "Safe testing", JRSS B 86(5), 2024; Kulldorff et al., "A maximized sequential
probability ratio test", Sequential Analysis 30, 2011 (the binomial form with a matching
ratio); Shin, Ramdas and Rinaldo, "E-detectors", NEJSDS 2(2), 2024 (restarts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Ratios of failure rates that are bet on, with the share of the stake on each.
WORSE_RATIOS = ((1.25, 0.10), (1.5, 0.15), (2.0, 0.25), (3.0, 0.20), (5.0, 0.15), (10.0, 0.10), (50.0, 0.05))
#: Effects on the log odds that are bet on by :class:`LogitBet` and :class:`PairBet`.
EFFECTS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)
#: exp of more than this is not a float any more.
_LOG_MOST = 700.0
_CLIP = 40.0
_WARM_UP = 20


def log_sum_exp(values: Sequence[float]) -> float:
    """log of the sum of exponentials, without overflow.

    >>> round(log_sum_exp([1000.0, 1000.0]) - 1000, 6) == round(math.log(2), 6)
    True
    """
    most = max(values)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(value - most) for value in values))


def _log_add(first: float, second: float) -> float:
    """The same for two: the innermost step of a look at much traffic."""
    return max(first, second) + math.log1p(math.exp(-abs(first - second)))


def as_e_value(log_e: float) -> float:
    """exp, capped so that overwhelming evidence stays a finite number in JSON."""
    return math.exp(min(log_e, _LOG_MOST))


class LabelBet:
    """Which arm drew the failures? H0: candidate's failure rate <= ``rho0`` times stable's.

    Given that a request failed and was drawn with candidate weight w, the chance that the
    candidate drew it is ``w r / (w r + 1 - w)`` for a rate ratio r. With q at the ratio that
    is bet on and q0 at ``rho0``, wealth is multiplied by ``q/q0`` when the candidate drew it
    and by ``(1-q)/(1-q0)`` when stable did: a likelihood ratio, mixed over the grid.

    >>> bet = LabelBet()
    >>> for _ in range(5):
    ...     bet.failure(candidate=True, weight=0.1)
    >>> bet.e_value > 1000
    True
    """

    def __init__(self, rho0: float = 1.0, ratios: Sequence[tuple[float, float]] = WORSE_RATIOS) -> None:
        """Start with a wealth of 1, spread over the ratios."""
        if rho0 <= 0:
            raise ValueError("rho0 must be positive")
        self.rho0 = rho0
        self._ratios = tuple(ratio for ratio, _ in ratios)
        self._logs = [math.log(share) for _, share in ratios]

    def failure(self, *, candidate: bool, weight: float) -> None:
        """Count one failure, with the weight that held when its arm was drawn.

        At weight 0 or 1 there was no coin, and the failure says nothing of the arms.
        """
        if not 0 < weight < 1:
            return
        odds = weight * self.rho0 / (1 - weight)
        q0 = odds / (odds + 1)
        for index, ratio in enumerate(self._ratios):
            q = odds * ratio / (odds * ratio + 1)
            self._logs[index] += math.log(q / q0) if candidate else math.log((1 - q) / (1 - q0))

    @property
    def logs(self) -> tuple[float, ...]:
        """log of the wealth on each ratio."""
        return tuple(self._logs)

    @property
    def log_e(self) -> float:
        """log of the wealth."""
        return log_sum_exp(self._logs)

    @property
    def e_value(self) -> float:
        """The wealth: the evidence against the candidate."""
        return as_e_value(self.log_e)

    def to_json(self) -> dict[str, Any]:
        """The whole state, for a JSONB column."""
        return {"rho0": self.rho0, "ratios": list(self._ratios), "logs": list(self._logs)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelBet:
        """The inverse of :meth:`to_json`: the bet goes on where it stopped."""
        bet = cls(float(data["rho0"]), [(float(ratio), 1.0) for ratio in data["ratios"]])
        bet._logs = [float(value) for value in data["logs"]]
        return bet


class RestartingLabelBet:
    """A :class:`LabelBet` that starts afresh from time to time, for faults that begin late.

    Wealth lost while the candidate was healthy is not held against later evidence. Bet j has
    the share ``1/(j(j+1))`` of the stake, which lies idle until bet j begins; the shares sum
    to 1, so the sum is one e-process.
    """

    def __init__(self, rho0: float = 1.0, every: int = 25) -> None:
        """Start one bet; ``every`` so many failures another one begins."""
        self._rho0 = rho0
        self._every = every
        self._seen = 0
        # Every bet moves by the same factors, so that one is kept, and where it stood as others began.
        self._bet = LabelBet(rho0)
        self._stakes = list(self._bet.logs)
        self._starts = [self._stakes]

    def restart(self) -> None:
        """Begin another bet now, as at a new step of the rollout."""
        self._starts.append(list(self._bet.logs))

    def failure(self, *, candidate: bool, weight: float) -> None:
        """Count one failure in every bet that has begun."""
        self._bet.failure(candidate=candidate, weight=weight)
        self._seen += 1
        if self._seen % self._every == 0:
            self.restart()

    @property
    def log_e(self) -> float:
        """log of the wealth of all bets and the idle rest of the stake."""
        idle = -math.log(len(self._starts) + 1)
        return log_sum_exp(
            [idle, *(self._wealth(start) - math.log(j * (j + 1)) for j, start in enumerate(self._starts, 1))]
        )

    def _wealth(self, start: Sequence[float]) -> float:
        """log of the wealth of the bet that began there."""
        return log_sum_exp(
            [now - then + stake for now, then, stake in zip(self._bet.logs, start, self._stakes, strict=True)]
        )

    @property
    def e_value(self) -> float:
        """The wealth: the evidence against the candidate."""
        return as_e_value(self.log_e)

    def to_json(self) -> dict[str, Any]:
        """The whole state, for a JSONB column."""
        starts = [list(start) for start in self._starts]
        bet = self._bet.to_json()
        return {"rho0": self._rho0, "every": self._every, "seen": self._seen, "bet": bet, "starts": starts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RestartingLabelBet:
        """The inverse of :meth:`to_json`."""
        bet = cls(float(data["rho0"]), int(data["every"]))
        bet._seen = int(data["seen"])
        bet._bet = LabelBet.from_json(data["bet"])
        bet._starts = [[float(value) for value in start] for start in data["starts"]]
        return bet


class LogitBet:
    """Any real score, higher is worse (log latency, log cost). H0: the candidate's score is
    stochastically no greater than stable's, at every moment.

    z is the score in standard deviations of the pooled past, s = theta * clip(z, ±40); wealth
    is multiplied by ``e^s / (w e^s + 1 - w)`` when the candidate drew the request and by
    ``1 / (w e^s + 1 - w)`` when stable did, mixed equally over theta. With q increasing in the
    score, E_candidate[q] + E_stable[1 - q] <= 1 under H0; no bound and no moment of the
    future is needed. The first 20 scores only set the scale.
    """

    def __init__(self) -> None:
        """Start with a wealth of 1, spread over the effects."""
        self._logs = [-math.log(len(EFFECTS))] * len(EFFECTS)
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def score(self, value: float, *, candidate: bool, weight: float) -> None:
        """Count one score, with the weight that held when its arm was drawn."""
        if not 0 < weight < 1 or not math.isfinite(value):
            return
        deviation = math.sqrt(self._squares / self._count) if self._count else 0.0
        if self._count >= _WARM_UP and deviation > 0:
            z = max(-_CLIP, min(_CLIP, (value - self._mean) / deviation))
            mine, theirs = math.log(weight), math.log(1 - weight)
            for index, theta in enumerate(EFFECTS):
                s = theta * z
                self._logs[index] += (s if candidate else 0.0) - _log_add(mine + s, theirs)
        # The scale may only use the past: this score joins it after it was bet on.
        self._count += 1
        step = value - self._mean
        self._mean += step / self._count
        self._squares += step * (value - self._mean)

    @property
    def log_e(self) -> float:
        """log of the wealth."""
        return log_sum_exp(self._logs)

    @property
    def e_value(self) -> float:
        """The wealth: the evidence against the candidate."""
        return as_e_value(self.log_e)

    def to_json(self) -> dict[str, Any]:
        """The whole state, for a JSONB column."""
        past = {"count": self._count, "mean": self._mean, "squares": self._squares}
        return {"logs": list(self._logs), **past}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LogitBet:
        """The inverse of :meth:`to_json`."""
        bet = cls()
        bet._logs = [float(value) for value in data["logs"]]
        bet._count, bet._mean = int(data["count"]), float(data["mean"])
        bet._squares = float(data["squares"])
        return bet


class PairBet:
    """Differences candidate minus stable on the same request, higher is worse. H0: the
    difference is as likely to be d as -d, or smaller.

    Wealth is multiplied by ``2 / (1 + e^(-s))`` with s = theta * clip(d / scale), the scale
    being the mean size of past differences: at d and -d these sum to 2.
    """

    def __init__(self) -> None:
        """Start with a wealth of 1, spread over the effects."""
        self._logs = [-math.log(len(EFFECTS))] * len(EFFECTS)
        self._count = 0
        self._size = 0.0

    def difference(self, value: float) -> None:
        """Count one difference."""
        if not math.isfinite(value):
            return
        if self._count and self._size > 0:
            z = max(-_CLIP, min(_CLIP, value / self._size))
            for index, theta in enumerate(EFFECTS):
                self._logs[index] += math.log(2) - log_sum_exp([0.0, -theta * z])
        self._count += 1
        self._size += (abs(value) - self._size) / self._count

    @property
    def log_e(self) -> float:
        """log of the wealth."""
        return log_sum_exp(self._logs)

    @property
    def e_value(self) -> float:
        """The wealth: the evidence against the candidate."""
        return as_e_value(self.log_e)


class FixedRateBet:
    """Failures against a fixed rate, where no control arm is left. H0: rate <= ``rate``.

    Wealth is multiplied by ``q/p`` for a failure and ``(1-q)/(1-p)`` otherwise, q being the
    fixed rate p times a ratio. Unlike the bets above it takes the traffic to be as it was
    when the rate was measured: use it with a wide margin.

    >>> bet = FixedRateBet(0.05)
    >>> for _ in range(6):
    ...     bet.outcome(failed=True)
    >>> bet.e_value > 1000
    True
    """

    def __init__(self, rate: float) -> None:
        """Start with a wealth of 1, spread over the ratios that stay below certainty."""
        if not 0 < rate < 1:
            raise ValueError("the rate must lie between 0 and 1")
        self._rate = rate
        self._rates = [min(rate * ratio, (1 + rate) / 2) for ratio, _ in WORSE_RATIOS]
        self._logs = [math.log(share) for _, share in WORSE_RATIOS]

    def outcome(self, *, failed: bool) -> None:
        """Count one unit's outcome."""
        for index, q in enumerate(self._rates):
            ratio = q / self._rate if failed else (1 - q) / (1 - self._rate)
            self._logs[index] += math.log(ratio)

    @property
    def log_e(self) -> float:
        """log of the wealth."""
        return log_sum_exp(self._logs)

    @property
    def e_value(self) -> float:
        """The wealth: the evidence against the candidate."""
        return as_e_value(self.log_e)


#: Both directions, for the share of traffic itself: too much is as wrong as too little.
_SPLIT_RATIOS = tuple(
    (ratio**sign, share / 2) for ratio, share in ((1.5, 0.3), (3.0, 0.4), (20.0, 0.3)) for sign in (1, -1)
)


def split_bet() -> LabelBet:
    """A bet that units are not drawn at the weight that was asked for: feed it every unit.

    A router that drops or retries in one arm makes the arms incomparable; the outcomes then
    prove nothing either way.
    """
    return LabelBet(ratios=_SPLIT_RATIOS)
