"""What was wanted, judged, approved and done: cycles, proposals, approvals, decisions, audit, events."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Identity, Index, Table, UniqueConstraint, text

from storage.tables.metadata import document, identifier, metadata, moment, words

cycles = Table(
    "cycles",
    metadata,
    identifier(),
    moment("started_at"),
    moment("ended_at", nullable=True),
    words("trigger"),
    words("planner", nullable=True),
    words("facts_digest", nullable=True),
    document("facts", nullable=True),
    document("signals", nullable=True),
    document("plan", nullable=True),  # what the planner decided, kept before anything is proposed
    words("summary", nullable=True),
    words("error", nullable=True),
    Index(None, "started_at"),
)

proposals = Table(
    "proposals",
    metadata,
    identifier(),
    words("tool"),
    document("arguments"),
    words("arguments_digest"),
    words("use_case", nullable=True),
    words("proposer"),  # "agent", "user:<name>", "rollout:<id>"
    words("cycle_id", nullable=True),
    words("reason"),
    words("status"),
    document("verdict", nullable=True),
    words("policy_digest", nullable=True),
    words("state_digest", nullable=True),
    words("run_id", nullable=True),  # of the durable run that carries it out
    document("outcome", nullable=True),
    words("error", nullable=True),
    moment("created_at"),
    moment("waiting_since", nullable=True),
    moment("started_at", nullable=True),
    moment("expires_at"),
    moment("ended_at", nullable=True),
    Index(None, "status", "created_at"),
    Index(None, "use_case", "tool", "created_at"),
)

approvals = Table(
    "approvals",
    metadata,
    identifier(),
    Column("proposal_id", ForeignKey("proposals.id"), nullable=False),
    words("approver"),
    words("role"),
    words("word"),
    words("binding_digest"),  # of tool, arguments, state and policy: what exactly was approved
    words("comment", nullable=True),
    moment("at"),
    UniqueConstraint("proposal_id", "approver", "binding_digest"),
)

decisions = Table(
    "decisions",
    metadata,
    identifier(),
    words("cycle_id", nullable=True),
    words("proposal_id", nullable=True),
    words("use_case", nullable=True),
    moment("at"),
    words("actor"),
    document("signals"),
    document("alternatives"),
    document("action", nullable=True),  # null: decided to do nothing
    words("reason"),
    document("prediction", nullable=True),
    document("verdict", nullable=True),
    document("outcome", nullable=True),
    moment("outcome_at", nullable=True),
    Index(None, "at"),
    Index(None, "proposal_id"),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # without gaps: see storage.audit
    moment("at"),
    words("actor"),
    words("event"),
    words("subject"),
    words("data"),  # canonical JSON as text: the hash is over these very characters
    words("previous_hash"),
    words("hash", unique=True),
    Index(None, "subject"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    moment("at"),
    words("kind"),
    words("subject"),
    document("data"),
)

chat_messages = Table(
    "chat_messages",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    words("thread_id"),
    words("author"),
    words("role"),  # operator, agent
    words("content"),
    document("cards", server_default=text("'[]'::jsonb")),
    moment("at"),
    Index(None, "thread_id", "id"),
)
