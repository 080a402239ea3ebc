"""Rollback. Go back to the last good release; which one that is, is looked up."""

from __future__ import annotations

from tools.contract import Arguments, Tool


class RollbackArguments(Arguments):
    """What rollback is asked with."""

    use_case: str


TOOL = Tool(
    "rollback", "Go back to the last good release; which one that is, is looked up.", RollbackArguments
)
