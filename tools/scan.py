"""Scan. Look at every source and record what is offered and what changed."""

from __future__ import annotations

from tools.contract import Arguments, Tool


class ScanArguments(Arguments):
    """What scan is asked with."""


TOOL = Tool("scan", "Look at every source and record what is offered and what changed.", ScanArguments)
