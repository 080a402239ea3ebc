"""Abort. Stop a running rollout and give all traffic back to the stable release."""

from __future__ import annotations

from tools.contract import Arguments, Tool


class AbortArguments(Arguments):
    """What abort is asked with."""

    rollout_id: str


TOOL = Tool(
    "abort", "Stop a running rollout and give all traffic back to the stable release.", AbortArguments
)
