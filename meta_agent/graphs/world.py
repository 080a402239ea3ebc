"""What the nodes may touch, handed in with every run and never stored with a thread."""

from __future__ import annotations

from dataclasses import dataclass

from langgraph.types import RetryPolicy

from meta_agent.planner import Planner
from meta_agent.settings import Settings
from pipelines.context import Context
from storage.database import Database, DatabaseUnavailable

#: Who proposes, decides and is written into the audit.
ACTOR = "agent"

#: Only a database that is away is worth another try. The library's own policy would repeat denials.
RETRY = RetryPolicy(
    max_attempts=3,
    initial_interval=0.2,
    max_interval=2.0,
    retry_on=lambda error: isinstance(error, DatabaseUnavailable),
)


@dataclass(frozen=True)
class World:
    """The world of a node."""

    database: Database
    context: Context
    settings: Settings
    planner: Planner
