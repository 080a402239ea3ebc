"""POST /v1/feedback: a score, a label or a comment for one answer, kept as durably as the answer's own row.

Saying the same twice is saying it once: the row's id is made of what was said.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import orjson

from gateway.chat_request import parse_body
from gateway.errors import ApiError
from gateway.http_message import Reply, Request
from gateway.journal import FEEDBACK
from gateway.replies import send_json
from gateway.services import Services
from storage.clock import now
from storage.routing import KeyRecord

#: What stands before an interaction's id in the ids of answers: chat completions, responses, messages.
_PREFIXES = re.compile(r"(?:chatcmpl-|resp_|msg_)?(int_[0-9a-z]{26})")
_NAME = re.compile(r"[a-z][a-z0-9_.\-]{0,63}")
_LONGEST = 4000


class FeedbackEndpoint:
    """The handler; one for the life of the process."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Take one statement. Raises ``ApiError``."""
        key: KeyRecord = request.admitted
        said = _read(parse_body(request.body))
        row = {"id": _id_of(key.id, said, request.headers.get(b"idempotency-key")), "at": now()}
        row.update(key_id=key.id, **said)
        self._services.journal.record(FEEDBACK, row)
        answer = {"id": row["id"], "object": "feedback", "interaction_id": row["interaction_id"]}
        send_json(reply, 202, orjson.dumps(answer))


def _id_of(key_id: str, said: dict[str, Any], given: bytes | None) -> str:
    """The same for the same statement, or for the same ``idempotency-key`` of one application."""
    words = orjson.dumps(said, option=orjson.OPT_SORT_KEYS) if given is None else b"key:" + given
    return "fb_" + hashlib.sha256(key_id.encode() + b"\0" + words).hexdigest()[:26]


def _read(body: dict[str, Any]) -> dict[str, Any]:
    target = body.get("interaction_id") or body.get("response_id") or body.get("ticket")
    found = _PREFIXES.fullmatch(target) if isinstance(target, str) else None
    if found is None:
        text = (
            "Give 'response_id' (the answer's id), 'interaction_id' (the x-request-id header) or 'ticket' "
            "(of /v1/route)."
        )
        raise ApiError(400, text, code="invalid_type", param="response_id")
    label, comment = _text(body, "label", _NAME), _text(body, "comment")
    value = body.get("score", body.get("value"))
    if value is None and label is None and comment is None:
        text = "Give a 'score' (or 'value'), a 'label' or a 'comment'."
        raise ApiError(400, text, code="missing_field", param="score")
    if value is not None and (not isinstance(value, bool | int | float | str) or len(str(value)) > _LONGEST):
        text = "'value' must be a number, true, false or a short string."
        raise ApiError(400, text, code="invalid_type", param="value")
    name = _text(body, "name", _NAME) or ("score" if value is not None else "label" if label else "comment")
    return {
        "interaction_id": found[1],
        "name": name,
        "value": value if value is not None else label or "",
        "label": label,
        "comment": comment,
    }


def _text(body: dict[str, Any], name: str, form: re.Pattern[str] | None = None) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST:
        text = f"'{name}' must be a string of at most {_LONGEST} characters."
        raise ApiError(400, text, code="invalid_type", param=name)
    if form is not None and not form.fullmatch(value):
        text = f"'{name}' must be a word in lower case, such as 'thumb' or 'completed'."
        raise ApiError(400, text, code="invalid_type", param=name)
    return value
