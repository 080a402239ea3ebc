"""Every version of every machine that a stored thread may still belong to.

A thread goes on with the version that it began with: a renamed node would otherwise end it in silence,
and a moved question would take an old answer. A new version is a new line here; an old one goes when no
thread is left on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langgraph.graph import StateGraph

from meta_agent.graphs.action import build_action
from meta_agent.graphs.cycle import build_cycle

GRAPHS: dict[str, Callable[[], StateGraph[Any, Any, Any, Any]]] = {
    "cycle/1": build_cycle,
    "action/1": build_action,
}
#: What new threads begin with.
CURRENT = {"cycle": "cycle/1", "action": "action/1"}


class UnknownGraphVersionError(RuntimeError):
    """A thread belongs to a version that this build does not have."""


def builder(version: str) -> Callable[[], StateGraph[Any, Any, Any, Any]]:
    """How that version is built."""
    if version not in GRAPHS:
        raise UnknownGraphVersionError(
            f"a thread belongs to {version}, this build has {', '.join(GRAPHS)}; run the build that began it"
        )
    return GRAPHS[version]
