"""Rank. Order the candidates for a use case, and say why the others are excluded."""

from __future__ import annotations

from tools.contract import Arguments, Tool


class RankArguments(Arguments):
    """What rank is asked with."""

    use_case: str


TOOL = Tool(
    "rank", "Order the candidates for a use case, and say why the others are excluded.", RankArguments
)
