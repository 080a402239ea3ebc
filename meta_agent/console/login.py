"""Logging in and out."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from meta_agent.access import COOKIE, LoginLimiter, identify_session, log_in
from meta_agent.callers import World, refuse_foreign_page
from meta_agent.console.rendering import render, see
from meta_agent.refusals import Refusal
from storage import identities

router = APIRouter()


def _safe_path(wanted: str) -> str:
    """A path on this server, or the overview: never another site."""
    local = wanted.startswith("/") and not wanted.startswith("//")
    return wanted if local and wanted.isascii() and wanted.isprintable() and "\\" not in wanted else "/"


@router.get("/login")
async def login_page(request: Request, services: World, next: str = "/") -> Response:
    """The form; whoever is logged in already goes on."""
    if await identify_session(services, request.cookies.get(COOKIE)) is not None:
        return see(_safe_path(next))
    return HTMLResponse(render("login.html", next=_safe_path(next), name="", problem=None))


@router.post("/login")
async def take_login(
    request: Request,
    services: World,
    name: Annotated[str, Form(max_length=100)],
    password: Annotated[str, Form(max_length=1000)],
    next: Annotated[str, Form(max_length=500)] = "/",
) -> Response:
    """Check the password and open a session."""
    refuse_foreign_page(request)
    limiter = cast("LoginLimiter", request.app.state.login_limiter)
    address = request.client.host if request.client else "unknown"
    try:
        token, _ = await log_in(services, limiter, name.strip(), password, address)
    except Refusal as refusal:
        text = render("login.html", next=_safe_path(next), name=name, problem=refusal.message)
        headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
        return HTMLResponse(text, refusal.status, headers)
    answer = see(_safe_path(next))
    control = services.settings.control
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(control.session_hours * 3600),
        httponly=True,
        samesite="lax",
        secure=control.secure_cookies,
    )
    return answer


@router.post("/logout")
async def log_out(request: Request, services: World) -> Response:
    """Close the session here and on the server."""
    token = request.cookies.get(COOKIE)
    if token:
        async with services.database.transaction() as connection:
            await identities.close_session(connection, token)
    answer = see("/login")
    answer.delete_cookie(COOKIE)
    return answer
