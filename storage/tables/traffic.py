"""What happened at the gateway: interactions, feedback, incidents; filled by COPY, read by time."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, Table, text

from storage.tables.metadata import document, dollars, identifier, metadata, moment, words

interactions = Table(
    "interactions",
    metadata,
    identifier(),
    moment("at"),
    words("kind"),
    words("use_case"),
    words("key_id", nullable=True),
    Column("route_revision", Integer),
    words("rollout_id", nullable=True),
    words("arm", nullable=True),
    words("release_id", nullable=True),
    words("deployment_id", nullable=True),
    Column("weight", Float),  # of the candidate arm when this request was assigned
    words("unit", nullable=True),
    words("user_id", nullable=True),
    words("conversation_id", nullable=True),
    Column("stream", Boolean, nullable=False, server_default=text("false")),
    document("request", nullable=True),
    words("response_text", nullable=True),
    words("finish_reason", nullable=True),
    words("status"),
    words("error_type", nullable=True),
    words("error_message", nullable=True),
    Column("http_status", Integer),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("usage_estimated", Boolean, nullable=False, server_default=text("false")),
    dollars("cost_usd", nullable=True),
    Column("latency_ms", Float),
    Column("ttft_ms", Float),
    Column("overhead_ms", Float),
    document("findings", nullable=True),  # [{category, pattern, ...}] of detectors
    words("shadow_of", nullable=True),
    words("fallback_of", nullable=True),
    Index("ix_interactions_use_case_at", "use_case", "at"),
    Index(
        "ix_interactions_rollout_id_at", "rollout_id", "at", postgresql_where=text("rollout_id is not null")
    ),
    Index("ix_interactions_release_id_at", "release_id", "at"),
    Index("ix_interactions_shadow_of", "shadow_of", postgresql_where=text("shadow_of is not null")),
)

feedback = Table(
    "feedback",
    metadata,
    identifier(),
    moment("at"),
    words("interaction_id"),
    words("key_id", nullable=True),
    words("name"),
    document("value"),
    words("comment", nullable=True),
    Index(None, "interaction_id"),
)

incidents = Table(
    "incidents",
    metadata,
    identifier(),
    moment("at"),
    words("use_case"),
    words("release_id", nullable=True),
    words("rollout_id", nullable=True),
    words("interaction_id", nullable=True),
    words("category"),
    words("severity"),
    words("summary"),
    words("intervention"),  # what was done at once: blocked, rolled_back, ...
    document("details"),
    Index(None, "use_case", "at"),
    Index(None, "release_id", "at"),
)
