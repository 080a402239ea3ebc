"""From an HTTP request to the caller behind it. Everything needs one, except the few public paths."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from meta_agent.access import (
    COOKIE,
    CSRF_FIELD,
    CSRF_HEADER,
    SAFE_METHODS,
    Identity,
    identify_key,
    identify_session,
)
from meta_agent.refusals import Refusal
from meta_agent.services import Services
from storage.vocabulary import Role

#: What anybody may ask for.
PUBLIC = frozenset({"/healthz/live", "/healthz/ready", "/login"})


def get_services(request: Request) -> Services:
    """The world, as the app was given it."""
    return cast("Services", request.app.state.services)


def refuse_foreign_page(request: Request) -> None:
    """Browsers say which site a request comes from; a change from another site is nobody's wish."""
    foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if request.method not in SAFE_METHODS and foreign:
        raise Refusal(403, "foreign_page", "This form was sent by another site. Use the console itself.")


async def _sent_token(request: Request) -> str | None:
    header = request.headers.get(CSRF_HEADER)
    if header is not None:
        return header
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return None
    value = (await request.form()).get(CSRF_FIELD)
    return value if isinstance(value, str) else None


async def authenticate(request: Request) -> None:
    """Know the caller before any handler runs; the default of the whole app."""
    if request.url.path in PUBLIC:
        return
    services, authorization = get_services(request), request.headers.get("authorization")
    if authorization is not None:
        request.state.identity = await identify_key(services, authorization)
        return
    identity = await identify_session(services, request.cookies.get(COOKIE))
    if identity is None:
        raise Refusal(401, "not_logged_in", "Log in at /login, or send a key as 'Authorization: Bearer ...'.")
    if request.method not in SAFE_METHODS:
        refuse_foreign_page(request)
        identity.check_csrf(await _sent_token(request))
    request.state.identity = identity


def get_identity(request: Request) -> Identity:
    """The caller that :func:`authenticate` found."""
    return cast("Identity", request.state.identity)


async def require_admin(request: Request) -> None:
    """For routes of admins only."""
    get_identity(request).require(Role.ADMIN)


World = Annotated[Services, Depends(get_services)]
Caller = Annotated[Identity, Depends(get_identity)]
