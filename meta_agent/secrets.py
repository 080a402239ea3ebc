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


def installation_secret(home: Path) -> str:
    """The secret of this installation; made on first use, readable by its owner only."""
    given = os.environ.get("META_AGENT_SECRET")
    if given:
        return given
    return read_or_create(home / "keys" / "installation-secret")


def derive(secret: str, purpose: str) -> str:
    """192 bits in hex for one purpose; knowing it tells nothing of the others (HMAC-SHA256)."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()[:48]


def read_or_create(path: Path) -> str:
    """The content of a secret file, made of 24 random bytes if it is not there; mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        write_secret(path, secrets.token_hex(24), exclusive=True)
    return path.read_text().strip()


def write_secret(path: Path, value: str, *, exclusive: bool = False) -> None:
    """Write a file that only its owner can read; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if exclusive and path.exists():
        raise FileExistsError(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    if exclusive:
        try:
            os.link(partial, path)
        finally:
            partial.unlink()
    else:
        partial.replace(path)
