"""What happened at the gateway: interactions, feedback, incidents, usage; filled by COPY, read by time."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Date, Float, Index, Integer, Table, text

from storage.tables.metadata import counter, document, dollars, identifier, metadata, moment, words

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
    Column("control", Boolean),  # stable's answer to a unit of the concurrent control group
    words("surface", nullable=True),  # the API that the caller spoke
    words("trace_id", nullable=True),
    words("span_id", nullable=True),
    words("parent_span_id", nullable=True),
    Column("attempts", Integer),  # how often a deployment was asked
    words("capture", nullable=True),
    words("provider", nullable=True),
    words("model", nullable=True),
    Index("ix_interactions_use_case_at", "use_case", "at"),
    Index(
        "ix_interactions_rollout_id_at", "rollout_id", "at", postgresql_where=text("rollout_id is not null")
    ),
    Index("ix_interactions_release_id_at", "release_id", "at"),
    Index("ix_interactions_shadow_of", "shadow_of", postgresql_where=text("shadow_of is not null")),
    Index("ix_interactions_user_id", "user_id", postgresql_where=text("user_id is not null")),
    # Rows come in by time: a few pages of summaries find a window of it.
    Index(
        "ix_interactions_at",
        "at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
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
    words("label", nullable=True),
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
    Index(
        "ix_incidents_interaction_id", "interaction_id", postgresql_where=text("interaction_id is not null")
    ),
)

usage = Table(
    "usage",
    metadata,
    words("subject", primary_key=True),  # key:<id>, use_case:<name> or shadow:<name>
    Column("day", Date, primary_key=True),  # in UTC
    counter("requests"),
    counter("tokens"),
    dollars("cost_usd"),
)
