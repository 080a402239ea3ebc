"""What the gateway needs: rules of serving, limits, rotation of keys, usage, traces, erasure

Indexes come first: while one is built, writers of its table wait (gateways keep their rows on disk
meanwhile) and readers do not. The columns come last: they are added without touching a row, but while
nobody reads.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_pre"
down_revision = "0001_pre"
branch_labels = None
depends_on = None

_OF_INTERACTIONS: dict[str, sa.types.TypeEngine[Any]] = {
    "control": sa.Boolean(),
    "surface": sa.Text(),
    "trace_id": sa.Text(),
    "span_id": sa.Text(),
    "parent_span_id": sa.Text(),
    "attempts": sa.Integer(),
    "capture": sa.Text(),
    "provider": sa.Text(),
    "model": sa.Text(),
}


def upgrade() -> None:
    _indexes()
    op.create_table(
        "usage",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=20, scale=12), nullable=False),
        sa.PrimaryKeyConstraint("subject", "day", name=op.f("pk_usage")),
    )
    _rules()
    op.add_column("feedback", sa.Column("label", sa.Text(), nullable=True))
    for name, kind in _OF_INTERACTIONS.items():
        op.add_column("interactions", sa.Column(name, kind, nullable=True))


def _indexes() -> None:
    op.create_index(
        "ix_interactions_at",
        "interactions",
        ["at"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    )
    op.create_index(
        "ix_interactions_user_id",
        "interactions",
        ["user_id"],
        postgresql_where=sa.text("user_id is not null"),
    )
    op.create_index(
        "ix_incidents_interaction_id",
        "incidents",
        ["interaction_id"],
        postgresql_where=sa.text("interaction_id is not null"),
    )
    op.create_index(
        "ix_evaluation_cases_recorded",
        "evaluation_cases",
        ["case_id"],
        postgresql_where=sa.text("origin = 'recorded'"),
    )
    op.create_index(op.f("ix_releases_created_at"), "releases", ["created_at"])


def _rules() -> None:
    empty = sa.text("'{}'::jsonb")
    op.add_column("use_cases", sa.Column("serving", postgresql.JSONB(), server_default=empty, nullable=False))
    op.add_column("releases", sa.Column("stable_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_releases_stable_at",
        "releases",
        ["stable_at"],
        postgresql_where=sa.text("stable_at is not null"),
    )
    op.add_column("api_keys", sa.Column("limits", postgresql.JSONB(), server_default=empty, nullable=False))
    op.add_column("api_keys", sa.Column("previous_sha256", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True))
