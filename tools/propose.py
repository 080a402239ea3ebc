"""Ask for something to be done: the one way in, for agent, console, API and command line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pipelines import facts
from policies.engine import judge
from policies.policy import Policy
from storage import audit, proposals
from storage.database import Connection, Database, storable
from storage.proposals import Proposal
from tools.catalog import get_tool

#: How long a proposal waits for people before it expires.
DEFAULT_EXPIRY = timedelta(hours=72)


async def propose(
    database: Database,
    policy: Policy,
    *,
    tool: str,
    arguments: Mapping[str, Any],
    proposer: str,
    reason: str,
    cycle_id: str | None = None,
    expires_in: timedelta = DEFAULT_EXPIRY,
) -> Proposal:
    """File a proposal with an early verdict, so that whoever asks knows at once.

    The verdict that counts is given next to the effect, by ``pipelines.actions``. Raises
    ``UnknownToolError`` or ``ToolArgumentsError`` when there is nothing that could be judged.
    """
    async with database.transaction() as connection:
        return await propose_in(
            connection,
            policy,
            tool=tool,
            arguments=arguments,
            proposer=proposer,
            reason=reason,
            cycle_id=cycle_id,
            expires_in=expires_in,
        )


async def propose_in(
    connection: Connection,
    policy: Policy,
    *,
    tool: str,
    arguments: Mapping[str, Any],
    proposer: str,
    reason: str,
    cycle_id: str | None = None,
    expires_in: timedelta = DEFAULT_EXPIRY,
) -> Proposal:
    """The same within a transaction of the caller's, who records something beside it."""
    parsed = get_tool(tool).parse(arguments)
    reason = storable(reason)
    use_case = await facts.use_case_of(connection, parsed)
    proposal_id = await proposals.create(
        connection,
        tool=tool,
        arguments=parsed,
        use_case=use_case,
        proposer=proposer,
        reason=reason,
        expires_in=expires_in,
        cycle_id=cycle_id,
    )
    proposal = await proposals.find(connection, proposal_id)
    if proposal is None:
        raise RuntimeError("a proposal vanished within its own transaction")
    gathered = await facts.gather(connection, proposal)
    verdict = judge(policy, tool, gathered.facts)
    await proposals.update_proposal(connection, proposal_id, verdict=verdict.to_json())
    await audit.append(
        connection,
        actor=proposer,
        event="proposal.created",
        subject=proposal_id,
        data={
            "tool": tool,
            "arguments": parsed,
            "use_case": use_case,
            "reason": reason,
            "early_verdict": verdict.outcome,
        },
    )
    filed = await proposals.find(connection, proposal_id)
    if filed is None:
        raise RuntimeError("a proposal vanished within its own transaction")
    return filed
