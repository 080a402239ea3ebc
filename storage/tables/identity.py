"""Who may do what: keys of applications and machines, operators, their sessions. Only digests of secrets."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Table, text

from storage.tables.metadata import document, identifier, metadata, moment, words

api_keys = Table(
    "api_keys",
    metadata,
    identifier(),
    words("name"),
    words("secret_sha256"),
    document("scopes"),
    document("use_cases", nullable=True),  # null: every use case
    words("acts_as", nullable=True),  # an operator's name, for keys of the control API
    moment("created_at"),
    moment("expires_at", nullable=True),
    moment("revoked_at", nullable=True),
    document("limits", server_default=text("'{}'::jsonb")),
    words("previous_sha256", nullable=True),  # of the secret before a rotation
    moment("previous_until", nullable=True),
)

users = Table(
    "users",
    metadata,
    words("name", primary_key=True),
    words("password_hash"),
    words("role"),
    moment("created_at"),
    moment("disabled_at", nullable=True),
)

sessions = Table(
    "sessions",
    metadata,
    words("token_sha256", primary_key=True),
    Column("user_name", ForeignKey("users.name"), nullable=False),
    words("csrf_token"),
    moment("created_at"),
    moment("expires_at"),
)
