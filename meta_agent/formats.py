"""How numbers, moments and words look on a page. Pure; unknown is a dash, never zero."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

DASH = "–"
#: Answers less alike than this have nothing worth marking.
_LIKE = 0.3

#: The colour of every state word; the word itself is always shown beside it.
TONES: Mapping[str, str] = {
    **dict.fromkeys(("healthy", "ok", "passed", "successful", "succeeded", "promoted", "allow", "approve",
                     "active", "intact", "done", "approved", "reachable", "stable"), "green"),
    **dict.fromkeys(("degraded", "waiting", "paused", "require_approval", "inconclusive", "deprecated",
                     "medium", "cancelled", "shadow", "proposed", "planned"), "amber"),
    **dict.fromkeys(("failing", "failed", "error", "rolled_back", "aborted", "denied", "deny", "rejected",
                     "reject", "expired", "blocked", "high", "critical", "retired", "missing",
                     "broken"), "red"),
    **dict.fromkeys(("running", "executing", "canary", "current", "candidate", "live"), "blue"),
}  # fmt: skip


def tone(word: str) -> str:
    """The colour of a state word."""
    return TONES.get(str(word), "grey")


def words(value: str) -> str:
    """A state word for people: underscores are spaces."""
    return str(value).replace("_", " ")


def sentence(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def number(value: float | int | Decimal | None, digits: int = 0) -> str:
    """1234.5 as 1,235."""
    return DASH if value is None else f"{value:,.{digits}f}"


def compact(value: float | None) -> str:
    """128000 as 128k."""
    if value is None:
        return DASH
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:g}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.013 as 1.3 %."""
    return DASH if share is None else f"{share * 100:.{digits}f}\u202f%"


def usd(amount: float | Decimal | None) -> str:
    """Dollars with as many digits as matter."""
    if amount is None:
        return DASH
    value = float(amount)
    if value == 0 or abs(value) >= 1:
        return f"${value:,.2f}"
    return f"${value:.{min(8, 1 - math.floor(math.log10(abs(value))))}f}"


def per_million(price: float | Decimal | str | None) -> str:
    """A price per token as dollars for a million of them."""
    return DASH if price is None else usd(Decimal(str(price)) * 1_000_000)


def milliseconds(value: float | None) -> str:
    """840 ms, 1.24 s."""
    if value is None:
        return DASH
    return f"{value:.0f}\u202fms" if value < 1000 else f"{value / 1000:.2f}\u202fs"


def significant(value: float | None) -> str:
    """Three digits that matter: 0.912, 1,250."""
    if value is None:
        return DASH
    return f"{float(f'{value:.3g}'):,.10g}" if 1e-4 <= abs(value) < 1e9 or value == 0 else f"{value:.1e}"


def measured(text: str) -> str:
    """What a rule measured, as text: numbers shortened, "never" for what has not happened yet."""
    try:
        value = float(text)
    except ValueError:
        return text
    if value >= 1e6:
        return "never"
    return "< 0.001" if 0 < value < 1e-3 else f"{value:,.5g}"


def actor(name: str | None) -> str:
    """Who did something: people by name, runs by their short id."""
    kind, _, rest = (name or "").rpartition(":")
    return short_id(rest if kind in ("", "user", "rollout", "run") else name)


def span(length: timedelta) -> str:
    """A length of time in its two largest units."""
    seconds = max(0, int(length.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago, or in how long."""
    if moment is None:
        return DASH
    return f"{span(now - moment)} ago" if moment <= now else f"in {span(moment - now)}"


def short_id(value: str | None) -> str:
    """Kind and the last characters, which are the random ones."""
    if not value:
        return DASH
    kind, _, rest = value.rpartition("_")
    return f"{kind}_…{rest[-6:]}" if kind and len(rest) > 8 else value


def pretty_json(value: Any) -> str:
    """Indented JSON, for people."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def diff(before: str | None, after: str | None) -> list[tuple[str, str]]:
    """Word by word: (same, removed or added, text). Answers that have little in common are not compared."""
    first, second = _tokens(before or ""), _tokens(after or "")
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    if matcher.ratio() < _LIKE:
        return [("same", after or "")]
    pieces: list[tuple[str, str]] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(first[a:b])))
            continue
        if b > a:
            pieces.append(("removed", "".join(first[a:b])))
        if d > c:
            pieces.append(("added", "".join(second[c:d])))
    return pieces


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s+|[^\s]+", text[:20_000])[:2_000]
