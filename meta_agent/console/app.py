"""The console's pages and files, added to the control process's app."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from meta_agent.console import approvals, catalogue, conversation, login, overview, records, rollouts
from meta_agent.console.rendering import HERE

_PAGES = (login, overview, approvals, rollouts, catalogue, records, conversation)


def install(app: FastAPI) -> None:
    """Add every page and the static files."""
    for module in _PAGES:
        app.include_router(module.router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
