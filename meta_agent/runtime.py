"""What every process of one installation shares: where the database is, and which policy holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from meta_agent.settings import ConfigurationError, Settings
from policies.loader import PolicyError, load_policy
from policies.policy import Autonomy, Policy

DEFAULT_POLICY = Path(__file__).parent.parent / "policies" / "default.yaml"


@contextlib.contextmanager
def open_database_url(settings: Settings) -> Iterator[str]:
    """The URL of the installation's database.

    Without one in the settings: the embedded server under META_AGENT_HOME, which is started for the length
    of the block or shared with whoever runs it already.
    """
    if settings.database.url is not None:
        yield settings.database.url.get_secret_value()
        return
    from storage.embedded import embedded_server

    with embedded_server(settings.home / "postgres") as url:
        yield url


def read_policy(settings: Settings) -> Policy:
    """The policy in force: the file, capped at the autonomy that the settings allow."""
    path = settings.policies or DEFAULT_POLICY
    try:
        policy = load_policy(path)
    except (PolicyError, OSError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return policy.capped(Autonomy(settings.agent.autonomy))
