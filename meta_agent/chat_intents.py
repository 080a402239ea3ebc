"""What an operator's line asks for, told by patterns. Pure: knows no storage and no model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Verb(StrEnum):
    """Everything that can be asked without a language model."""

    STATUS = "status"
    EXPLAIN = "explain"
    DECISIONS = "decisions"
    APPROVALS = "approvals"
    INCIDENTS = "incidents"
    COST = "cost"
    RANK = "rank"
    SCAN = "scan"
    TEST = "test"
    DEPLOY = "deploy"
    ROLL_BACK = "rollback"
    ABORT = "abort"
    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    HELP = "help"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Intent:
    """A verb, what it is about, and for which use case, if they were said."""

    verb: Verb
    subject: str = ""
    use_case: str = ""


_FOR = r"(?:\s+(?:for|in|on|of)\s+(?P<use_case>\S+))?"
#: The first that matches counts, so that a question about a rollback does not file one.
_PATTERNS: tuple[tuple[Verb, re.Pattern[str]], ...] = tuple(
    (verb, re.compile(pattern, re.IGNORECASE))
    for verb, pattern in (
        (Verb.HELP, r"(?:help|\?|what can (?:you|i) (?:do|ask).*)"),
        (
            Verb.EXPLAIN,
            r"why (?:was|is|were|has|did|do|are|does)(?: been)?(?: the| my| you| we)?\s+(?P<subject>.+?)"
            r"(?:\s+(?:been\s+|get\s+)?(?:rolled back|roll back|aborted|stopped|promoted|paused"
            r"|rejected|denied|failed|fail))?",
        ),
        (Verb.EXPLAIN, r"what (?:has )?happened (?:to|with)(?: the)?\s+(?P<subject>.+?)"),
        (Verb.EXPLAIN, r"(?:explain|tell me about|history of)\s+(?P<subject>.+?)"),
        (Verb.PAUSE, r"(?:pause|stop)(?: the)?(?: agent)?"),
        (Verb.RESUME, r"(?:resume|unpause|continue)(?: the)?(?: agent)?"),
        (Verb.ROLL_BACK, r"(?:please )?(?:roll\s?-?back|revert)(?:\s+(?P<use_case>\S+))?"),
        (Verb.ABORT, r"(?:please )?abort(?: the)?(?: rollout)?" + _FOR),
        (Verb.ABORT, r"(?:please )?abort\s+(?P<subject>\S+)"),
        (Verb.APPROVE, r"(?:please )?(?:approve|reject)\b.*"),
        (Verb.SCAN, r"(?:please )?(?:scan|look for (?:new )?models)(?:\s.*)?"),
        (
            Verb.RANK,
            r"(?:please )?(?:rank|ranking|best models?|candidates)(?:\s+models)?(?:\s+(?:for|of))?"
            r"(?:\s+(?P<use_case>\S+))?",
        ),
        (Verb.TEST, r"(?:please )?(?:test|evaluate|try)\s+(?P<subject>\S+)" + _FOR),
        (Verb.DEPLOY, r"(?:please )?(?:deploy|roll out|release)\s+(?P<subject>\S+)" + _FOR),
        (Verb.APPROVALS, r".*\b(?:approvals?|waiting|pending|queue)\b.*"),
        (Verb.INCIDENTS, r".*\b(?:incidents?|blocked|unsafe|violations?)\b.*"),
        (Verb.COST, r".*\b(?:costs?|spend|spent|spending|budget|money|expensive)\b.*"),
        (Verb.DECISIONS, r".*\b(?:decisions?|decide|decided|what did (?:you|the agent) do|been doing)\b.*"),
        (
            Verb.STATUS,
            r"(?:hi|hello|hey|status|overview|health|fleet|rollouts?|(?:how|what).*(?:status|going|doing|running|health|are|is)\b.*)"
            r"(?:\s.*)?",
        ),
    )
)


def understand(text: str) -> Intent:
    """The intent of one line.

    >>> understand("why was lab/bargain rolled back?")
    Intent(verb=<Verb.EXPLAIN: 'explain'>, subject='lab/bargain', use_case='')
    >>> understand("roll back story-teller")
    Intent(verb=<Verb.ROLL_BACK: 'rollback'>, subject='', use_case='story-teller')
    >>> understand("test swift for story-teller").use_case
    'story-teller'
    """
    line = " ".join(text.split())[:500].rstrip(" ?!.")
    for verb, pattern in _PATTERNS:
        match = pattern.fullmatch(line)
        if match:
            found = {key: value or "" for key, value in match.groupdict().items()}
            return Intent(verb, **found)
    return Intent(Verb.UNKNOWN, line)
