"""POST /v1/feedback: a score for one answer, kept as durably as the answer's own row."""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.asgi import Receive, Send, read_body, send_json
from gateway.chat_request import parse_body
from gateway.errors import ApiError
from gateway.journal import FEEDBACK
from gateway.keys import authenticate
from gateway.services import Services
from storage.clock import now
from storage.ids import new_id

_INTERACTION = re.compile(r"int_[0-9a-z]{26}")
_NAME = re.compile(r"[a-z][a-z0-9_.\-]{0,63}")
_LONGEST = 4000
_BODY_LIMIT = 64 * 1024


class FeedbackEndpoint:
    """The handler; one for the life of the process."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        """Take one score. Raises ``ApiError``."""
        key = authenticate(self._services.snapshot(), headers.get(b"authorization"))
        body = parse_body(await read_body(receive, headers, _BODY_LIMIT))
        row = {"id": new_id("fb"), "at": now(), "key_id": key.id, **_read(body)}
        self._services.journal.record(FEEDBACK, row)
        answer = {"id": row["id"], "object": "feedback", "interaction_id": row["interaction_id"]}
        await send_json(send, 202, orjson.dumps(answer))


def _read(body: dict[str, Any]) -> dict[str, Any]:
    target = body.get("interaction_id") or body.get("response_id")
    interaction = target.removeprefix("chatcmpl-") if isinstance(target, str) else ""
    if not _INTERACTION.fullmatch(interaction):
        text = "Give 'interaction_id' (the x-request-id header) or 'response_id' (the answer's id)."
        raise ApiError(400, text, code="invalid_type", param="interaction_id")
    name = body.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        text = "'name' must be a word in lower case, such as 'thumb' or 'completed'."
        raise ApiError(400, text, code="invalid_type", param="name")
    value = body.get("value")
    if not isinstance(value, bool | int | float | str) or len(str(value)) > _LONGEST:
        text = "'value' must be a number, true, false or a short string."
        raise ApiError(400, text, code="invalid_type", param="value")
    comment = body.get("comment")
    if comment is not None and (not isinstance(comment, str) or len(comment) > _LONGEST):
        text = f"'comment' must be a string of at most {_LONGEST} characters."
        raise ApiError(400, text, code="invalid_type", param="comment")
    return {"interaction_id": interaction, "name": name, "value": value, "comment": comment}
