"""How much of an interaction is kept: what a use case's capture takes out of a row before the log has it.

People never stand in the log by the names that applications give them: each is a pseudonym, always.

``nothing``    what bills and rollouts are made of: no person, no conversation, no words, not even ours.
               The unit stays countable as a pseudonym, findings as their categories.
``metadata``   also who and which conversation; no words of request, answer or error.
``redacted``   also the words, without what identifies a person.
``full``       all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.redaction import redact, redact_json
from storage.vocabulary import Capture, InteractionStatus

Row = dict[str, Any]
Pseudonym = Callable[[str], str]

#: All that is left of a row under ``nothing``. A new column is kept only if it is added here.
ACCOUNTING = frozenset(
    {
        "id", "at", "kind", "use_case", "key_id", "route_revision", "rollout_id", "arm", "release_id",
        "deployment_id", "weight", "unit", "stream", "finish_reason", "status", "error_type", "http_status",
        "prompt_tokens", "completion_tokens", "usage_estimated", "cost_usd", "latency_ms", "ttft_ms",
        "overhead_ms", "findings", "surface", "provider", "model", "control", "attempts", "trace_id",
        "span_id",
        "parent_span_id", "shadow_of", "fallback_of",
    }
)  # fmt: skip
#: Columns that hold words of the caller, the model or the provider.
WORDS = ("request", "response_text", "error_message")
#: Columns that say who it was.
PERSON = ("user_id", "conversation_id")

_FINDING_FIELDS = frozenset({"category", "pattern", "detector", "blocked"})
_USER_FIELDS = ("user", "safety_identifier")


def captured(row: Row, capture: Capture, pseudonym: Pseudonym) -> Row | None:
    """What is kept of a row; None: no line at all. Changes neither the row nor the request in it.

    Nobody is charged for a refused call, so under ``nothing`` there is no line of it.
    """
    if capture is Capture.NOTHING:
        return None if row["status"] == InteractionStatus.REJECTED else _accounting(row, pseudonym)
    if capture is Capture.FULL and _names_nobody(row):
        return row
    kept = _without_names(row, pseudonym)
    if capture is Capture.FULL:
        return kept
    if capture is Capture.REDACTED:
        return _redacted(kept, pseudonym)
    kept.update(dict.fromkeys(WORDS))
    kept["findings"] = [_plain_finding(finding) for finding in row["findings"] or ()]
    return kept


def _names_nobody(row: Row) -> bool:
    """Whether the row holds no field for a user's name; most do not, and need no copy."""
    request = row["request"]
    if row["user_id"] is not None or not isinstance(request, dict):
        return row["user_id"] is None and request is None
    metadata = request.get("metadata")
    return request.keys().isdisjoint(_USER_FIELDS) and not (metadata and "user_id" in metadata)


def _accounting(row: Row, pseudonym: Pseudonym) -> Row:
    kept = {name: value if name in ACCOUNTING else None for name, value in row.items()}
    unit = row["unit"]
    if unit is not None and unit == row["user_id"]:
        kept["unit"] = pseudonym(unit)
    elif unit is not None and unit != row["id"]:
        kept["unit"] = _unit_of_conversation(unit, pseudonym)
    found = row["findings"] or ()
    kept["findings"] = [{"category": each.get("category"), "blocked": each.get("blocked")} for each in found]
    return kept


def _without_names(row: Row, pseudonym: Pseudonym) -> Row:
    """The row with the user's pseudonym wherever the user stands in a field of its own."""
    kept, user = dict(row), row["user_id"]
    if user is not None:
        kept["user_id"] = pseudonym(user)
        for name in ("unit", "conversation_id"):
            if row[name] == user:
                kept[name] = kept["user_id"]
    if isinstance(row["request"], dict):
        kept["request"] = _request_without_names(row["request"], user, pseudonym)
    return kept


def _request_without_names(request: Row, user: str | None, pseudonym: Pseudonym) -> Row:
    changes: Row = {
        name: pseudonym(value)
        for name, value in request.items()
        if isinstance(value, str) and (name in _USER_FIELDS or (user and value == user))
    }
    metadata = request.get("metadata")
    if isinstance(metadata, dict):
        names = {
            name: pseudonym(value)
            for name, value in metadata.items()
            if isinstance(value, str) and (name == "user_id" or (user and value == user))
        }
        if names:
            changes["metadata"] = {**metadata, **names}
    return {**request, **changes} if changes else request


def _redacted(row: Row, pseudonym: Pseudonym) -> Row:
    kept = row
    kept["request"] = redact_json(row["request"])
    for name in ("response_text", "error_message", "finish_reason"):
        if row[name] is not None:
            kept[name] = redact(row[name])
    kept["findings"] = redact_json(row["findings"])
    conversation = row["conversation_id"]
    if conversation is not None and redact(conversation) != conversation:  # named after somebody's address
        kept["conversation_id"] = _unit_of_conversation(conversation, pseudonym)
        if row["unit"] == conversation:
            kept["unit"] = kept["conversation_id"]
    return kept


def _unit_of_conversation(conversation: str, pseudonym: Pseudonym) -> str:
    """Never the pseudonym of a user who happens to be called the same."""
    return pseudonym(f"conversation:{conversation}")


def _plain_finding(finding: Row) -> Row:
    return {name: value for name, value in finding.items() if name in _FINDING_FIELDS}
