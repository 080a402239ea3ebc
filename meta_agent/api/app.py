"""The control process's web application, put together. It keeps no state: any worker serves any request."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute

from meta_agent.access import LoginLimiter
from meta_agent.api import catalogue, errors, event_stream, fleet, governance, health, identity
from meta_agent.api.hardening import Hardening
from meta_agent.callers import authenticate
from meta_agent.console.app import install as install_console
from meta_agent.live_feed import LiveFeed
from meta_agent.services import Services
from meta_agent.settings import Settings
from policies.policy import Policy
from storage.database import Database

_ROUTERS = (health, fleet, catalogue, governance, identity, event_stream)
_DESCRIPTION = (
    "The control plane of Meta Agent. Send a key as 'Authorization: Bearer ma_live_...'. Errors are "
    '{"error": {"message", "type", "code"}}. What acts is filed as a proposal, which policy judges.'
)


def create_app(database: Database, settings: Settings, policy: Policy) -> FastAPI:
    """The API and the console over one database."""
    app = FastAPI(
        title="Meta Agent",
        version="0.1.0",
        description=_DESCRIPTION,
        openapi_url=None,  # served below, behind authentication like everything else
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(authenticate)],
        generate_unique_id_function=_operation_id,
    )
    app.state.services = Services(database, settings, policy)
    app.state.feed = LiveFeed(database)
    app.state.login_limiter = LoginLimiter()
    for module in _ROUTERS:
        app.include_router(module.router)
    app.include_router(identity.account)
    app.add_api_route("/api/v1/openapi.json", _openapi_of(app), methods=["GET"], include_in_schema=False)
    install_console(app)
    errors.install(app)
    app.add_middleware(Hardening)
    return app


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}-{route.name}" if route.tags else route.name


def _openapi_of(app: FastAPI) -> Any:
    async def openapi() -> dict[str, Any]:
        """The API's description."""
        document: dict[str, Any] = app.openapi()
        document["components"].setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"key": []}]
        return document

    return openapi
