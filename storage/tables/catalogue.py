"""What could be used: sources, their offerings, how those changed, and how they rank."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Index,
    Numeric,
    Table,
    UniqueConstraint,
    text,
)

from storage.tables.metadata import counter, document, identifier, metadata, moment, words

sources = Table(
    "sources",
    metadata,
    words("name", primary_key=True),
    words("kind"),
    moment("last_attempt_at", nullable=True),
    moment("last_success_at", nullable=True),
    words("last_error", nullable=True),
    counter("offerings", server_default=text("0")),
)

offerings = Table(
    "offerings",
    metadata,
    identifier(),
    words("source"),
    words("external_id"),
    words("provider"),  # who serves it; a configured provider's name if reachable is true
    words("model"),  # the name to send on the wire
    Column("reachable", Boolean, nullable=False),  # a configured provider can be called for it now
    Column("price_input", Numeric(20, 12)),  # USD per token; null = unknown, never free
    Column("price_output", Numeric(20, 12)),
    Column("context_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    document("capabilities"),
    words("lifecycle"),
    moment("retires_at", nullable=True),
    words("payload_digest"),
    document("payload"),
    moment("first_seen_at"),
    moment("last_seen_at"),
    counter("scans_missed", server_default=text("0")),
    UniqueConstraint("source", "external_id"),
    Index(None, "provider", "model"),
    Index("ix_offerings_reachable", "id", postgresql_where=text("reachable")),
)

offering_changes = Table(
    "offering_changes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("offering_id", ForeignKey("offerings.id"), nullable=False),
    moment("at"),
    words("kind"),  # appeared, price, lifecycle, limits, capabilities, vanished, returned
    document("before", nullable=True),
    document("after", nullable=True),
    Index(None, "offering_id"),
    Index(None, "at"),
)

rankings = Table(
    "rankings",
    metadata,
    identifier(),
    words("use_case"),
    moment("at"),
    words("stable_offering", nullable=True),
    document("profile"),  # tokens per request it was computed with
    document("candidates"),  # best first: offering, cost, estimates and why
    document("excluded"),  # counts and examples by reason
    Index(None, "use_case", "at"),
)
