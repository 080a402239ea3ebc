"""Test. Evaluate an offering against the stable release on the suite and on recorded traffic."""

from __future__ import annotations

from tools.contract import Arguments, Tool


class TestArguments(Arguments):
    """What test is asked with."""

    use_case: str
    offering_id: str


TOOL = Tool(
    "test",
    "Evaluate an offering against the stable release on the suite and on recorded traffic.",
    TestArguments,
)
