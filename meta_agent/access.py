"""Who is asking: operators by session cookie or password, machines by key. Knows no page and no endpoint.

A cookie is sent by the browser whoever wrote the page, so that every change asked for with one must also
carry the session's CSRF token. A key is only ever sent on purpose and needs none.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from meta_agent.refusals import Refusal
from meta_agent.services import Services
from storage import audit, identities
from storage.vocabulary import Role

COOKIE = "ma_session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

#: What a key's scope makes of its bearer. ``infer`` is for the gateway and opens nothing here.
ROLE_OF_SCOPE: Mapping[str, Role] = {
    "read": Role.VIEWER,
    "operate": Role.OPERATOR,
    "approve": Role.APPROVER,
    "admin": Role.ADMIN,
}
_ATTEMPTS = 5  # log-ins per name and address before waiting
_WINDOW_SECONDS = 60.0
_REMEMBERED = 10_000

_hasher = PasswordHasher()
#: Verified against when there is no such user, so that the time to answer does not tell.
_NOBODY = _hasher.hash("nobody")


@dataclass(frozen=True)
class Identity:
    """A caller whose word counts."""

    name: str
    role: Role
    speaks_for: str | None  #: the operator; None: a key that acts as nobody
    csrf_token: str | None = None  #: of the session; None: came with a key

    @property
    def actor(self) -> str:
        """How audit rows and proposals name this caller."""
        return f"user:{self.name}"

    def may(self, role: Role) -> bool:
        """Whether this caller has at least that role."""
        return self.role.rank >= role.rank

    def require(self, role: Role) -> None:
        """Refuse whoever has less."""
        if not self.may(role):
            raise Refusal(
                403,
                "role_required",
                f"This needs the role {role}; {self.name} is {self.role}. Ask an admin for a higher role.",
            )

    def check_csrf(self, sent: str | None) -> None:
        """Refuse a change that a foreign page may have asked for."""
        if self.csrf_token is not None and not hmac.compare_digest(self.csrf_token, sent or ""):
            raise Refusal(
                403,
                "csrf_token_invalid",
                "The form's token is missing or old. Reload the page and try again.",
            )


def hash_password(password: str) -> str:
    """An argon2id hash for ``storage.identities.ensure_user``."""
    return _hasher.hash(password)


def _matches(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


class LoginLimiter:
    """Counts failed log-ins by name and address, in this process only."""

    def __init__(self) -> None:
        """Nobody has failed yet."""
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def _recent(self, key: tuple[str, str]) -> list[float]:
        horizon = time.monotonic() - _WINDOW_SECONDS
        return [moment for moment in self._failures.get(key, []) if moment > horizon]

    def check(self, name: str, address: str) -> None:
        """Refuse when too many attempts failed lately."""
        recent = self._recent((name, address))
        if len(recent) >= _ATTEMPTS:
            wait = max(1, round(recent[0] + _WINDOW_SECONDS - time.monotonic()))
            message = f"Too many failed log-ins for this name. Try again in {wait} seconds."
            raise Refusal(429, "too_many_attempts", message, retry_after=wait)

    def failed(self, name: str, address: str) -> None:
        """Count one more; the oldest names are forgotten when there are too many."""
        key = (name, address)
        self._failures[key] = [*self._recent(key), time.monotonic()]
        self._failures.move_to_end(key)
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failures."""
        self._failures.pop((name, address), None)


async def log_in(
    services: Services, limiter: LoginLimiter, name: str, password: str, address: str
) -> tuple[str, str]:
    """(session token, CSRF token) for the right password; a refusal does not say what was wrong."""
    limiter.check(name, address)
    async with services.database.connection() as connection:
        user = await identities.find_user(connection, name)
    active = user is not None and user.disabled_at is None
    stored = user.password_hash if user is not None and active else _NOBODY
    if not (await asyncio.to_thread(_matches, stored, password) and active):
        limiter.failed(name, address)
        raise Refusal(401, "wrong_credentials", "That name and password do not belong together.")
    limiter.succeeded(name, address)
    lifetime = timedelta(hours=services.settings.control.session_hours)
    async with services.database.transaction() as connection:
        tokens = await identities.open_session(connection, name, lifetime)
        await audit.append(
            connection, actor=f"user:{name}", event="session.opened", subject=name, data={"address": address}
        )
    return tokens


async def identify_session(services: Services, token: str | None) -> Identity | None:
    """The operator behind a cookie."""
    if not token:
        return None
    async with services.database.connection() as connection:
        session = await identities.find_session(connection, token)
        user = await identities.find_user(connection, session.user_name) if session else None
    if session is None or user is None or user.disabled_at is not None:
        return None
    return Identity(user.name, Role(user.role), user.name, session.csrf_token)


async def identify_key(services: Services, authorization: str) -> Identity:
    """The machine behind an Authorization header."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refusal(401, "invalid_authorization", "Send the key as 'Authorization: Bearer ma_live_...'.")
    async with services.database.connection() as connection:
        key = await identities.find_key(connection, token.strip())
        user = await identities.find_user(connection, key.acts_as) if key and key.acts_as else None
    if key is None:
        raise Refusal(401, "invalid_api_key", "The key is unknown, revoked or expired.")
    if user is not None and user.disabled_at is not None:
        raise Refusal(401, "user_disabled", f"The key acts as {user.name}, who is disabled.")
    roles = [ROLE_OF_SCOPE[scope] for scope in key.scopes if scope in ROLE_OF_SCOPE]
    if not roles:
        raise Refusal(403, "scope_required", "The key has none of the scopes read, operate, approve, admin.")
    role = max(roles, key=lambda each: each.rank)
    if user is not None:  # a key never has more power than the person it acts for
        role = min(role, Role(user.role), key=lambda each: each.rank)
    return Identity(key.acts_as or f"key-{key.id}", role, key.acts_as)
