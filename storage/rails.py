"""Rails in the database itself: what was written stays as it was written.

Triggers refuse to change or remove rows of append-only tables, and to change what a proposal asks for,
whoever asks: a bug, an agent, or a person with psql.
"""

from __future__ import annotations

#: Tables whose rows are never changed or removed.
APPEND_ONLY = ("audit", "approvals", "offering_changes", "routes", "rollout_measurements")

#: What of a proposal is fixed when it is made.
PROPOSAL_FIXED = ("tool", "arguments", "arguments_digest", "proposer", "created_at", "expires_at")

REFUSE = """
create function meta_agent_refuse() returns trigger language plpgsql as $$
begin
  raise exception 'rows of % are append-only', tg_table_name using errcode = 'restrict_violation';
end $$
"""

REFUSE_PROPOSAL_EDIT = f"""
create function meta_agent_refuse_proposal_edit() returns trigger language plpgsql as $$
begin
  if ({", ".join(f"old.{name}" for name in PROPOSAL_FIXED)})
     is distinct from ({", ".join(f"new.{name}" for name in PROPOSAL_FIXED)}) then
    raise exception 'what a proposal asks for cannot change; make a new one'
      using errcode = 'restrict_violation';
  end if;
  return new;
end $$
"""


def statements() -> list[str]:
    """The DDL, in order."""
    triggers = [
        f"create trigger {table}_append_only before update or delete or truncate on {table} "
        "for each statement execute function meta_agent_refuse()"
        for table in APPEND_ONLY
    ]
    proposal = (
        "create trigger proposals_fixed before update on proposals "
        "for each row execute function meta_agent_refuse_proposal_edit()"
    )
    return [REFUSE, REFUSE_PROPOSAL_EDIT, *triggers, proposal]
