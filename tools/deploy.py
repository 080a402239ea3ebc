"""Deploy. Roll a tested release out: shadow, then a growing share, then all traffic."""

from __future__ import annotations

from tools.contract import Arguments, Tool


class DeployArguments(Arguments):
    """What deploy is asked with."""

    use_case: str
    release_id: str


TOOL = Tool(
    "deploy", "Roll a tested release out: shadow, then a growing share, then all traffic.", DeployArguments
)
