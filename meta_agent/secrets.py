"""The installation's own secret, and what is derived from it.

One random secret under META_AGENT_HOME (or META_AGENT_SECRET, where several machines share an installation)
gives every internal key, so that processes find each other without a secret being passed around.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from meta_agent.settings_file import ConfigurationError

_SHORTEST = 16


def installation_secret(home: Path) -> str:
    """The secret of this installation; made on first use, readable by its owner only.

    Raises :class:`ConfigurationError` for one that could be guessed: every internal key follows from it.
    """
    given = os.environ.get("META_AGENT_SECRET")
    path = home / "keys" / "installation-secret"
    secret = given or read_or_create(path)
    if len(secret) < _SHORTEST:
        source = "META_AGENT_SECRET" if given else str(path)
        raise ConfigurationError(
            f"the secret in {source} is shorter than {_SHORTEST} characters; write a random one, "
            "as `openssl rand -hex 24` prints it"
        )
    return secret


def derive(secret: str, purpose: str) -> str:
    """192 bits in hex for one purpose; knowing it tells nothing of the others (HMAC-SHA256)."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()[:48]


def pseudonym_key(home: Path) -> bytes:
    """What turns names of users into pseudonyms: the same in every process of the installation."""
    return derive(installation_secret(home), "pseudonyms").encode()


def read_or_create(path: Path) -> str:
    """The content of a secret file, made of 24 random bytes if it is not there; mode 0600."""
    private_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        write_secret(path, secrets.token_hex(24), exclusive=True)
    _close_to_others(path)
    return path.read_text().strip()


def private_directory(path: Path) -> None:
    """A directory that only its owner can enter, made if it is not there."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _close_to_others(path)


def write_secret(path: Path, value: str, *, exclusive: bool = False) -> None:
    """Write a file that only its owner can read; whole or not at all."""
    private_directory(path.parent)
    if exclusive and path.exists():
        raise FileExistsError(path)
    # A name of its own: threads and processes may write the same secret at the same time.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(partial, path)
        else:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _close_to_others(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        path.chmod(mode & 0o700)
