"""Who calls: from the request's headers to the key's record. Keeps no secret and writes none."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping

from gateway.errors import ApiError, bad_key
from storage.api_keys import sha256, split_key
from storage.clock import now
from storage.routing import KeyRecord, RoutingSnapshot

INFER = "infer"  #: may call models
PIN = "pin"  #: may ask for one exact release
EVALUATE = "evaluate"  #: may mark its calls as evaluation
INSPECT = "inspect"  #: may see who answered, and what it cost
ROUTE = "route"  #: may take a route and call the model itself

_NOBODY = KeyRecord("", "", "0" * 64, frozenset(), frozenset())


def authenticate(snapshot: RoutingSnapshot, headers: Mapping[bytes, bytes]) -> KeyRecord:
    """The key of a request; one and the same refusal whatever is wrong with it.

    Sent as a Bearer token, or as Anthropic's clients send it, in ``x-api-key``.
    """
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise bad_key()
    else:
        token = headers.get(b"x-api-key", b"")
    parts = split_key(token.strip().decode("latin-1"))
    if parts is None:
        raise bad_key()
    # An unknown id takes the same comparison, so that its answer takes no less time.
    key = snapshot.keys.get(parts[0], _NOBODY)
    secret = sha256(parts[1])
    if not hmac.compare_digest(secret, key.secret_sha256) and not _is_previous(key, secret):
        raise bad_key()
    # The database is asked for valid keys only, but it may be away for longer than a key is meant to live.
    if key.expires_at is not None and key.expires_at <= now():
        raise bad_key()
    return key


def _is_previous(key: KeyRecord, secret: str) -> bool:
    """Whether it is the secret from before a rotation, which is valid for a while longer."""
    if key.previous_sha256 is None or key.previous_until is None:
        return False
    return hmac.compare_digest(secret, key.previous_sha256) and key.previous_until > now()


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
