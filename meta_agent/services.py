"""What the control process is made of: the database, the settings and the policy, handed in once."""

from __future__ import annotations

from dataclasses import dataclass

from meta_agent.settings import Settings
from policies.policy import Policy
from storage.database import Database


@dataclass(frozen=True)
class Services:
    """The world of the API, the console and the chat."""

    database: Database
    settings: Settings
    policy: Policy
