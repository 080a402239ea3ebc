"""GET /v1/models: what a key may call, in the shapes in which OpenAI and Anthropic list models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import orjson

from gateway.errors import unknown_model
from gateway.http_message import Reply, Request
from gateway.keys import callable_use_cases
from gateway.replies import send_json
from gateway.services import Services

PATH = "/v1/models"


class ModelsEndpoint:
    """The handlers of the list and of one entry."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_all(self, request: Request, reply: Reply) -> None:
        """Every use case that the key may call."""
        entries = [self._entry(name) for name in self._names(request)]
        first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
        # What follows ``data`` is for Anthropic's clients.
        page = {"object": "list", "data": entries, "has_more": False, "first_id": first, "last_id": last}
        send_json(reply, 200, orjson.dumps(page))

    async def show(self, request: Request, reply: Reply) -> None:
        """One of them. Raises ``ApiError``."""
        name = unquote(request.path.removeprefix(f"{PATH}/"))
        names = self._names(request)
        if name not in names:
            raise unknown_model(name, names)
        send_json(reply, 200, orjson.dumps(self._entry(name)))

    def _names(self, request: Request) -> list[str]:
        return list(callable_use_cases(self._services.snapshot(), request.admitted))

    def _entry(self, name: str) -> dict[str, Any]:
        created = self._services.table.applied_at
        entry = {"id": name, "object": "model", "created": created, "owned_by": "meta-agent"}
        # And what Anthropic's clients read of an entry.
        created_at = datetime.fromtimestamp(created, UTC).isoformat()
        return {**entry, "type": "model", "display_name": name, "created_at": created_at}
