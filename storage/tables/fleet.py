"""What is used: use cases, deployments, releases, routes and the rollouts between them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from storage.tables.metadata import counter, document, dollars, identifier, metadata, moment, words

use_cases = Table(
    "use_cases",
    metadata,
    words("name", primary_key=True),
    words("risk"),
    words("assignment_unit"),
    document("constraints"),
    Column("budget_usd_per_month", Float),
    document("rollout_plan"),  # overrides of the default plan
    document("serving", server_default=text("'{}'::jsonb")),  # what differs from storage.servings' defaults
    document("suite", nullable=True),
    words("suite_digest", nullable=True),
    moment("created_at"),
    moment("updated_at"),
)

deployments = Table(
    "deployments",
    metadata,
    identifier(),
    words("digest", unique=True),  # of everything that decides the answer: see deployments.digest_of
    words("provider"),
    words("model"),
    document("parameters"),
    words("system_prompt", nullable=True),
    words("guard_profile"),
    Column("offering_id", ForeignKey("offerings.id")),
    dollars("price_input"),
    dollars("price_output"),
    moment("created_at"),
)

releases = Table(
    "releases",
    metadata,
    identifier(),
    Column("use_case", ForeignKey("use_cases.name"), nullable=False),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False),
    words("evaluation_id", nullable=True),
    words("created_by"),
    words("note", nullable=True),
    moment("created_at"),
    Column("was_stable", Boolean, nullable=False, server_default=text("false")),  # a snapshot to go back to
    moment("stable_at", nullable=True),  # when it became one
    Index(None, "use_case", "created_at"),
    Index(None, "created_at"),
    Index("ix_releases_stable_at", "stable_at", postgresql_where=text("stable_at is not null")),
)

routes = Table(
    "routes",
    metadata,
    Column(
        "version", BigInteger, Identity(), primary_key=True
    ),  # over all use cases, what gateways acknowledge
    Column("use_case", ForeignKey("use_cases.name"), nullable=False),
    Column("revision", Integer, nullable=False),
    words("assignment_unit"),
    words("salt"),
    words("rollout_id", nullable=True),
    document("arms"),  # [{arm, release_id, weight}]
    words("reason"),
    words("created_by"),
    moment("created_at"),
    UniqueConstraint("use_case", "revision"),
)

gateways = Table(
    "gateways",
    metadata,
    words("id", primary_key=True),
    counter("routes_version"),
    moment("seen_at"),
)

rollouts = Table(
    "rollouts",
    metadata,
    identifier(),
    Column("use_case", ForeignKey("use_cases.name"), nullable=False),
    Column("candidate_release_id", ForeignKey("releases.id"), nullable=False),
    Column("stable_release_id", ForeignKey("releases.id"), nullable=False),
    words("proposal_id", nullable=True),
    words("state"),
    Column("step", Integer, nullable=False, server_default=text("0")),
    Column("weight", Float, nullable=False, server_default=text("0")),
    counter("epoch", server_default=text("0")),  # compare-and-swap: one transition, one writer
    document("plan"),
    document("analysis"),
    words("reason", nullable=True),
    words("requested", nullable=True),  # abort, pause, resume: a person's wish, taken by the run
    words("resume_state", nullable=True),
    moment("created_at"),
    moment("step_started_at", nullable=True),
    moment("ended_at", nullable=True),
    Index(
        "uq_rollouts_one_active",
        "use_case",
        unique=True,
        postgresql_where=text("ended_at is null"),
    ),
)

rollout_measurements = Table(
    "rollout_measurements",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("rollout_id", ForeignKey("rollouts.id"), nullable=False),
    moment("at"),
    words("state"),
    Column("step", Integer, nullable=False),
    Column("weight", Float, nullable=False),
    words("phase"),
    document("metrics"),
    Index(None, "rollout_id", "id"),
)

flags = Table(
    "flags",
    metadata,
    Column("name", Text, primary_key=True),  # agent_paused
    document("value", nullable=True),
    words("changed_by"),
    moment("changed_at"),
)
