"""Who calls: from the Authorization header to the key's record. Keeps no secret and writes none."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from gateway.errors import ApiError, bad_key
from storage.clock import now
from storage.identities import sha256, split_key
from storage.routes import KeyRecord, RoutingSnapshot

INFER = "infer"  #: may call models
PIN = "pin"  #: may ask for one exact release
EVALUATE = "evaluate"  #: may mark its calls as evaluation


def authenticate(snapshot: RoutingSnapshot, authorization: bytes | None) -> KeyRecord:
    """The key of a request; one and the same refusal whatever is wrong with it."""
    scheme, _, token = (authorization or b"").partition(b" ")
    if scheme.lower() != b"bearer":
        raise bad_key()
    parts = split_key(token.strip().decode("latin-1"))
    if parts is None:
        raise bad_key()
    key = snapshot.keys.get(parts[0])
    # An unknown id takes the same comparison, so that its answer takes no less time.
    expected = key.secret_sha256 if key else "0" * 64
    if not hmac.compare_digest(sha256(parts[1]), expected) or key is None:
        raise bad_key()
    # The database is asked for valid keys only, but it may be away for longer than a key is meant to live.
    if key.expires_at is not None and key.expires_at <= now():
        raise bad_key()
    return key


def may_call(key: KeyRecord, use_case: str) -> bool:
    """Whether the key is for this use case."""
    return key.use_cases is None or use_case in key.use_cases


def callable_use_cases(snapshot: RoutingSnapshot, key: KeyRecord) -> Collection[str]:
    """The use cases that exist and that the key may call, by name."""
    return [name for name in sorted(snapshot.routes) if may_call(key, name)]


def demand_scope(key: KeyRecord, scope: str, purpose: str) -> None:
    """Refuse a call that needs a right which the key lacks."""
    if scope not in key.scopes:
        text = f"This key may not {purpose}. Use a key with the scope '{scope}', or ask the operator for one."
        raise ApiError(403, text, "permission_error", "missing_scope")
