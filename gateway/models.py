"""GET /v1/models: what a key may call, in the shape in which OpenAI lists models."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.asgi import Send, send_json
from gateway.errors import unknown_model
from gateway.keys import authenticate, callable_use_cases
from gateway.services import Services


class ModelsEndpoint:
    """The handlers of the list and of one entry."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_all(self, headers: dict[bytes, bytes], send: Send) -> None:
        """Every use case that the key may call."""
        entries = [self._entry(name) for name in self._names(headers)]
        await send_json(send, 200, orjson.dumps({"object": "list", "data": entries}))

    async def show(self, headers: dict[bytes, bytes], name: str, send: Send) -> None:
        """One of them. Raises ``ApiError``."""
        names = self._names(headers)
        if name not in names:
            raise unknown_model(name, names)
        await send_json(send, 200, orjson.dumps(self._entry(name)))

    def _names(self, headers: dict[bytes, bytes]) -> list[str]:
        snapshot = self._services.snapshot()
        key = authenticate(snapshot, headers.get(b"authorization"))
        return list(callable_use_cases(snapshot, key))

    def _entry(self, name: str) -> dict[str, Any]:
        created = self._services.table.applied_at
        return {"id": name, "object": "model", "created": created, "owned_by": "meta-agent"}
