"""How good a model probably is at a use case: a Beta posterior over the share of cases it solves.

Pure arithmetic. The prior is weak on purpose: fifty own cases outweigh it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

#: Before anything was measured here: this share of cases, believed as firmly as this many cases.
PRIOR_MEAN, PRIOR_WEIGHT = 0.8, 8.0
_TINY = 1e-300


@dataclass(frozen=True)
class Posterior:
    """What is believed of the share of cases that a model solves.

    >>> Posterior.after(passes=58, cases=60).mean > Posterior.after(passes=0, cases=0).mean
    True
    """

    mean: float
    lower_bound: float  #: it is better than this with 95 %
    passes: int
    cases: int

    @classmethod
    def after(cls, *, passes: int, cases: int) -> Posterior:
        """The belief after that many of our own cases."""
        if not 0 <= passes <= cases:
            raise ValueError(f"{passes} of {cases} cases cannot have passed")
        a = PRIOR_MEAN * PRIOR_WEIGHT + passes
        b = (1 - PRIOR_MEAN) * PRIOR_WEIGHT + cases - passes
        return cls(a / (a + b), beta_quantile(0.05, a, b), passes, cases)


@lru_cache(maxsize=4096)
def beta_quantile(share: float, a: float, b: float) -> float:
    """The point below which a Beta(a, b) variable falls with that probability.

    >>> round(beta_quantile(0.5, 3, 3), 9), round(beta_quantile(0.25, 1, 1), 9)
    (0.5, 0.25)
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if beta_below(middle, a, b) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_below(x: float, a: float, b: float) -> float:
    """The probability that a Beta(a, b) variable is below x (the regularised incomplete beta)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    # The fraction converges fast on this side of the mean only; the other follows by symmetry.
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_below(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """Lentz's evaluation of the continued fraction of the incomplete beta."""
    c, d = 1.0, 1 / (_away_from_zero(1 - (a + b) * x / (a + 1)))
    value = d
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(value - before) <= 1e-13 * abs(value):
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
