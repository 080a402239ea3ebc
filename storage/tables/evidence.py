"""What was measured before traffic: evaluations and their cases."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, Table, UniqueConstraint, text

from storage.tables.metadata import document, dollars, identifier, metadata, moment, words

evaluations = Table(
    "evaluations",
    metadata,
    identifier(),
    Column("use_case", ForeignKey("use_cases.name"), nullable=False),
    Column("candidate_release_id", ForeignKey("releases.id"), nullable=False),
    Column("stable_release_id", ForeignKey("releases.id"), nullable=False),
    words("offering_id", nullable=True),
    words("proposal_id", nullable=True),
    words("suite_digest"),
    words("status"),
    Column("cases_planned", Integer, nullable=False, server_default=text("0")),
    Column("cases_done", Integer, nullable=False, server_default=text("0")),
    document("summary", nullable=True),
    words("reason", nullable=True),
    moment("created_at"),
    moment("ended_at", nullable=True),
    Index(None, "use_case", "created_at"),
)

evaluation_cases = Table(
    "evaluation_cases",
    metadata,
    identifier(),
    Column("evaluation_id", ForeignKey("evaluations.id"), nullable=False),
    words("case_id"),
    words("origin"),  # suite or recorded
    document("messages"),
    document("checks"),
    words("stable_text", nullable=True),
    words("candidate_text", nullable=True),
    document("stable_result", nullable=True),  # {"passed": bool, "failed_checks": [...], "error": ...}
    document("candidate_result", nullable=True),
    Column("agrees", Boolean),
    Column("lexical_similarity", Float),
    Column("stable_latency_ms", Float),
    Column("candidate_latency_ms", Float),
    dollars("stable_cost_usd", nullable=True),
    dollars("candidate_cost_usd", nullable=True),
    UniqueConstraint("evaluation_id", "case_id"),
    Index("ix_evaluation_cases_recorded", "case_id", postgresql_where=text("origin = 'recorded'")),
)
