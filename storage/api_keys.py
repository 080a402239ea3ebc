"""Keys as clients send them: ``ma_live_<id>_<secret>``. Knows no database; standard library only."""

from __future__ import annotations

import hashlib
import secrets


def sha256(secret: str) -> str:
    """Hex SHA-256: keys and session tokens are long random strings, so that a fast hash suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """192 random bits, in URL-safe characters without underscores (the separator of keys)."""
    return secrets.token_hex(24)


def format_key(key_id: str, secret: str) -> str:
    """``ma_live_<id>_<secret>``, as a client sends it."""
    return f"ma_live_{key_id}_{secret}"


def split_key(token: str) -> tuple[str, str] | None:
    """(id, secret) of a well-formed key."""
    prefix, _, rest = token.partition("ma_live_")
    key_id, separator, secret = rest.partition("_")
    return (key_id, secret) if not prefix and separator and key_id and secret else None
