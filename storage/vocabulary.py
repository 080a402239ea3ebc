"""The words that rows, facts and pages share. Standard library only: policies may import it."""

from __future__ import annotations

from enum import StrEnum


class Risk(StrEnum):
    """How much harm a bad answer of a use case can do; policy tiers hang on it."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Arm(StrEnum):
    """The place of a release in a route."""

    STABLE = "stable"
    CANDIDATE = "candidate"
    SHADOW = "shadow"


class AssignmentUnit(StrEnum):
    """What is assigned to an arm as a whole, and therefore votes once per metric."""

    REQUEST = "request"
    CONVERSATION = "conversation"
    USER = "user"


class InteractionKind(StrEnum):
    """Why a request was made."""

    LIVE = "live"
    SHADOW = "shadow"
    EVALUATION = "evaluation"
    ROUTED = "routed"  #: the caller took the route and calls the model itself


class InteractionStatus(StrEnum):
    """How one request ended, in the caller's eyes."""

    OK = "ok"  #: answered in full
    BLOCKED = "blocked"  #: answered, and stopped by a detector
    ERROR = "error"  #: the deployment failed: HTTP error, timeout, broken or half answer
    CANCELLED = "cancelled"  #: the caller went away
    REJECTED = "rejected"  #: refused before any deployment was asked (never an arm's fault)
    HANDED_OVER = "handed_over"  #: routed; how it ended is known from feedback only


class Capture(StrEnum):
    """How much of an interaction is kept; each keeps what the one before it keeps."""

    NOTHING = "nothing"
    METADATA = "metadata"  #: who, when, how long, how much; no texts
    REDACTED = "redacted"  #: texts without what identifies a person
    FULL = "full"


class OverBudget(StrEnum):
    """What happens to requests once a budget is spent."""

    ALERT = "alert"  #: they go on; somebody is told
    DOWNGRADE = "downgrade"  #: a cheaper release answers
    BLOCK = "block"


class Lifecycle(StrEnum):
    """Where an offering stands with its source."""

    ACTIVE = "active"
    DEPRECATED = "deprecated"
    RETIRED = "retired"
    MISSING = "missing"  #: absent from its source's listing in three scans


class RolloutState(StrEnum):
    """The life of a rollout. The last four are final, except that ``paused`` may go on."""

    PLANNED = "planned"
    SHADOW = "shadow"
    CANARY = "canary"
    PAUSED = "paused"  #: inconclusive, or held by a person
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"  #: stopped by a person, or because nobody watched it any more

    @property
    def is_final(self) -> bool:
        """No further transition can follow."""
        return self in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK, RolloutState.ABORTED)


class Phase(StrEnum):
    """What an analysis says of the evidence so far (words of Argo Rollouts)."""

    RUNNING = "running"  #: not enough evidence yet
    SUCCESSFUL = "successful"
    FAILED = "failed"
    ERROR = "error"  #: it could not be measured; no evidence against the candidate
    INCONCLUSIVE = "inconclusive"  #: measured long enough, and still open: ask a person


class VerdictOutcome(StrEnum):
    """What policy says of a proposal."""

    ALLOW = "allow"
    REQUIRE_APPROVAL = "require_approval"
    DENY = "deny"


class ProposalStatus(StrEnum):
    """The life of a proposal, from somebody's wish to a finished run."""

    PROPOSED = "proposed"
    WAITING = "waiting"  #: in the approval queue
    EXECUTING = "executing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"  #: by policy
    REJECTED = "rejected"  #: by a person
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """No further transition can follow."""
        return self not in (ProposalStatus.PROPOSED, ProposalStatus.WAITING, ProposalStatus.EXECUTING)


class ApprovalWord(StrEnum):
    """A person's word on one exact proposal."""

    APPROVE = "approve"
    REJECT = "reject"


class EvaluationStatus(StrEnum):
    """The life of an evaluation. ``failed`` means the candidate fell short; ``error`` that it
    could not be measured."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"


class Severity(StrEnum):
    """How bad an incident is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Role(StrEnum):
    """What an operator may do; each includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"  #: may propose, pause and reject
    APPROVER = "approver"  #: may also approve
    ADMIN = "admin"  #: may also manage keys and users

    @property
    def rank(self) -> int:
        """Position in the order of power, viewer first."""
        return list(Role).index(self)
