"""How alike two models' answers are, in numbers. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection

#: One-sided 95 %.
Z_95 = 1.6448536269514722
_WORD = re.compile(r"\w+")


def is_no_worse(stable_failed: Collection[str], candidate_failed: Collection[str]) -> bool:
    """The candidate passes whatever stable passes. What stable fails is not asked of it.

    >>> is_no_worse({"a"}, {"a"}), is_no_worse({"a"}, {"b"}), is_no_worse({"a"}, set())
    (True, False, True)
    """
    return set(candidate_failed) <= set(stable_failed)


def wilson_lower_bound(hits: int, trials: int, z: float = Z_95) -> float:
    """The share that lies below the true one with 95 %; 0 without trials.

    >>> round(wilson_lower_bound(60, 60), 4), wilson_lower_bound(0, 0)
    (0.9569, 0.0)
    """
    if trials == 0:
        return 0.0
    share = hits / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Rounding must not lift the bound of nothing above nothing.
    return min(share, max(0.0, (centre - spread) / (1 + z * z / trials)))


def lexical_similarity(one: str, other: str) -> float:
    """The words that two texts share, order aside: F1 of their bags of words.

    >>> lexical_similarity("The end.", "the END"), lexical_similarity("", ""), lexical_similarity("a", "")
    (1.0, 1.0, 0.0)
    """
    first, second = (Counter(_WORD.findall(text.lower())) for text in (one, other))
    if not first and not second:
        return 1.0
    return 2 * (first & second).total() / (first.total() + second.total())


def percentile(values: Collection[float], share: float) -> float | None:
    """The nearest-rank percentile; None without values.

    >>> percentile([4, 1, 3, 2], 0.5), percentile([7], 0.95), percentile([], 0.5)
    (2, 7, None)
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
