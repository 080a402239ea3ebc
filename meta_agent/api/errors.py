"""From exceptions to answers: JSON for programs, a page for people, a sentence and never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from meta_agent.api.hardening import SECURITY_HEADERS
from meta_agent.console.rendering import error_page
from meta_agent.refusals import Refusal, error_type
from storage.database import DatabaseUnavailable, NotStorable

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Register every handler."""
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in DatabaseUnavailable:
        app.add_exception_handler(kind, _unavailable)
    for fault in NotStorable:
        app.add_exception_handler(fault, _not_storable)
    app.add_exception_handler(Exception, _crash)


def answer(request: Request, refusal: Refusal) -> Response:
    """The refusal in the form that its reader expects."""
    headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
    if request.url.path.startswith(("/api/", "/healthz/")):
        body = {"error": {"message": refusal.message, "type": refusal.type, "code": refusal.code}}
        if refusal.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(body, refusal.status, headers)
    if refusal.status == 401:
        return _to_login(request)
    return error_page(request, refusal, headers)


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request") == "true":
        return Response(status_code=204, headers={"hx-redirect": "/login"})
    wanted = request.url.path if request.method == "GET" and request.url.path != "/" else ""
    return RedirectResponse("/login" + (f"?next={wanted}" if wanted else ""), status_code=303)


async def _refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    return answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    message = "; ".join(_problem(each) for each in problems) or "The request is not valid."
    return answer(request, Refusal(422, "invalid_request", message))


def _problem(problem: Mapping[str, object]) -> str:
    location = problem.get("loc")
    parts = [str(part) for part in location] if isinstance(location, (list, tuple)) else []
    return f"{'.'.join(parts) or 'request'}: {problem.get('msg')}"


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "There is nothing at this address.", 405: "This address does not take that method."}
    message = words.get(status) or str(getattr(error, "detail", "")) or "The request cannot be served."
    return answer(request, Refusal(status, error_type(status).removesuffix("_error"), message))


async def _unavailable(request: Request, error: Exception) -> Response:
    log.warning("%s %s: the database is away: %s", request.method, request.url.path, error)
    return answer(
        request, Refusal(503, "database_unavailable", "The database does not answer; try again soon.")
    )


async def _not_storable(request: Request, error: Exception) -> Response:
    """The value came from the caller: whatever we make ourselves can be stored."""
    log.warning("%s %s: not storable: %s", request.method, request.url.path, type(error).__name__)
    text = (
        "A value of the request cannot be stored: a text with a NUL character, or a number that is too large."
    )
    return answer(request, Refusal(422, "invalid_request", text))


async def _crash(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    crashed = answer(
        request, Refusal(500, "internal_error", "This is a fault of ours; the log has the details.")
    )
    crashed.headers.update(SECURITY_HEADERS)  # this answer is given outside of all middleware
    return crashed
