"""What the processes of one installation share: where the database is, which policy holds, where state lives.

Each problem found here is a :class:`ConfigurationError`, whose sentence says what to do.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from meta_agent.secrets import private_directory
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
    from storage.embedded import EmbeddedServerError, embedded_server

    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(embedded_server(settings.home / "postgres"))
        except EmbeddedServerError as error:
            raise ConfigurationError(str(error)) from None
        yield url


def read_policy(settings: Settings) -> Policy:
    """The policy in force: the file, capped at the autonomy that the settings allow."""
    path = settings.policies or DEFAULT_POLICY
    try:
        policy = load_policy(path)
    except PolicyError as error:
        problems = [each.removeprefix(f"{path}: ") for each in error.problems]
        raise ConfigurationError("\n".join(f"{path}: {each}" for each in problems)) from None
    return policy.capped(Autonomy(settings.agent.autonomy))


def prepare_home(home: Path) -> None:
    """Make the directories of an installation; they hold keys, prompts and logs, hence nobody else's eyes."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in ("keys", "gateway", "logs"):
            private_directory(home / part)
    except OSError as error:
        reason = "it is a file" if home.is_file() else error.strerror
        raise ConfigurationError(
            f"{home} cannot hold the state of this installation: {reason}; "
            "set META_AGENT_HOME to a directory that you can write"
        ) from None


def refuse_used_port(what: str, host: str, port: int, setting: str) -> None:
    """Say which port is taken, for which role, and by which setting to choose another."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {host}, for the {what}, cannot be used: {error.strerror}. "
            f"Stop whoever uses it, or choose another by {setting}"
        ) from None


def executor_lock(worker_id: str) -> str:
    """The lock that a running worker holds in the database, by the name that the durable engine gives it."""
    return f"dbos-executor:{worker_id}"
