"""From a filed proposal to its end: what is waited for, what is shown meanwhile, and what the exit code is.

The proposal goes on without whoever looks at it: interrupting this changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meta_agent.cli.failures import Exit, Failure
from meta_agent.cli.output import Output, make_table
from storage.vocabulary import ProposalStatus, VerdictOutcome

if TYPE_CHECKING:
    from meta_agent.cli.client import Client

Json = dict[str, Any]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
_HINT_AFTER = 15.0  # seconds that a worker may take before somebody should look for it
_PATIENCE = 60.0  # seconds for which a control plane may be away while we look

_EXITS = {
    ProposalStatus.SUCCEEDED: Exit.OK,
    ProposalStatus.FAILED: Exit.FAILED,
    ProposalStatus.EXPIRED: Exit.FAILED,
    ProposalStatus.DENIED: Exit.REFUSED,
    ProposalStatus.REJECTED: Exit.REFUSED,
    ProposalStatus.WAITING: Exit.WAITING,
}
_EARLY = {
    VerdictOutcome.ALLOW: Exit.OK,
    VerdictOutcome.REQUIRE_APPROVAL: Exit.WAITING,
    VerdictOutcome.DENY: Exit.REFUSED,
}


def exit_code(proposal: Json) -> Exit:
    """What the state of a proposal means to a script.

    One that is filed and not taken up yet is known by its early verdict.
    """
    status = ProposalStatus(proposal["status"])
    if status is ProposalStatus.PROPOSED and proposal.get("verdict"):
        return _EARLY[VerdictOutcome(proposal["verdict"]["outcome"])]
    return _EXITS.get(status, Exit.OK)


def follow(client: Client, output: Output, proposal: Json, limit: float | None) -> Json:
    """Look at a proposal until it ends or waits for a person."""
    began = time.monotonic()
    pause, hinted, path = _FIRST_PAUSE, False, f"proposals/{proposal['id']}"
    try:
        with output.status() as tell:
            while not _settled(proposal):
                tell(progress(client, proposal))
                waited = time.monotonic() - began
                if limit is not None and waited > limit:
                    raise _too_slow(proposal, limit)
                if proposal["status"] == ProposalStatus.PROPOSED and waited > _HINT_AFTER and not hinted:
                    output.note("No worker has taken it up yet. Does one run? 'meta-agent doctor' tells.")
                    hinted = True
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE)
                proposal = patiently(lambda: client.get(path), tell)
    except KeyboardInterrupt:
        output.note(f"Proposal {proposal['id']} goes on without you.")
        raise
    return proposal


def _settled(proposal: Json) -> bool:
    status = ProposalStatus(proposal["status"])
    return status.is_final or status is ProposalStatus.WAITING


def _too_slow(proposal: Json, limit: float) -> Failure:
    return Failure(
        f"Proposal {proposal['id']} is still {proposal['status']} after {limit:g} seconds. It goes on; look "
        f"at it with 'meta-agent approvals show {proposal['id']}'.",
        Exit.FAILED,
        "timeout",
    )


def patiently(ask: Callable[[], Json], tell: Callable[[str], None]) -> Json:
    """Ask again while the control plane is away for a moment, as it is during an upgrade."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except Failure as failure:
            passing = failure.exit_code is Exit.UNREACHABLE or failure.code == "database_unavailable"
            if not passing or time.monotonic() > until:
                raise
            tell("the control plane is away for a moment; trying again")
            time.sleep(1.0)


def progress(client: Client, proposal: Json) -> str:
    """One line on where a proposal stands."""
    tool, status = proposal["tool"], proposal["status"]
    if status != ProposalStatus.EXECUTING:
        return f"{tool}: filed as {proposal['id']}, waiting for the worker"
    try:
        detail = _detail(client, proposal)
    except Failure:
        detail = ""  # a line of progress is not worth failing for
    return f"{tool}: running{detail}"


def _detail(client: Client, proposal: Json) -> str:
    if proposal["tool"] == "test":
        evaluation = find_of(client, "evaluations", proposal)
        return f", {evaluation['cases_done']} of {evaluation['cases_planned']} cases" if evaluation else ""
    if proposal["tool"] == "deploy":
        rollout = find_of(client, "rollouts", proposal)
        return f", {standing(rollout)}" if rollout else ""
    return ""


def find_of(client: Client, collection: str, proposal: Json) -> Json | None:
    """The evaluation or rollout that a proposal led to."""
    found = client.list(collection, use_case=proposal["use_case"], limit=50)
    return next((each for each in found if each["proposal_id"] == proposal["id"]), None)


def standing(rollout: Json) -> str:
    """Where a rollout stands, in one line."""
    current = next((each for each in rollout["steps"] if each["status"] in ("current", "paused")), None)
    if current is None:
        return str(rollout["state"])
    seen = "" if current["needed"] is None else f", {current['seen'] or 0} of {current['needed']} units"
    why = rollout["analysis"].get("why")
    return f"{rollout['state']} at {current['label']}{seen}" + (f": {why}" if why else "")


def show_rules(output: Output, verdict: Json | None, *, only_fired: bool = True) -> None:
    """The rules of a verdict, with what was measured and what is allowed."""
    checks = [each for each in (verdict or {}).get("checks", []) if not (only_fired and each["ok"])]
    rows = [
        (each["rule"], "ok" if each["ok"] else each["effect"], each["measured"], each["limit"], each["why"])
        for each in checks
    ]
    if rows:
        output.show(make_table("", ["rule", "says", "measured", "limit", "why"], rows))


def report(client: Client, output: Output, proposal: Json) -> Exit:
    """Say how it ended or what it waits for, and what to do; returns the exit code."""
    code, name = exit_code(proposal), f"{proposal['tool']} ({proposal['id']})"
    if code is Exit.WAITING:
        needed = (proposal.get("verdict") or {}).get("approvals_needed") or 1
        people = "one person" if needed == 1 else f"{needed} people"
        output.note(f"{name} waits for the approval of {people} other than the proposer.", style="yellow")
        show_rules(output, proposal.get("verdict"))
        output.say(f"Look and decide: {client.base_url}/approvals/{proposal['id']}")
        output.say(f"or: meta-agent approvals approve {proposal['id']}")
    elif code is Exit.REFUSED:
        who = "Rejected" if proposal["status"] == ProposalStatus.REJECTED else "Policy denies"
        output.note(f"{who}: {name}. {proposal['error'] or ''}".rstrip(), style="red")
        show_rules(output, proposal.get("verdict"))
    elif code is Exit.FAILED:
        output.note(f"{name} {proposal['status']}: {proposal['error'] or 'no reason was given'}", style="red")
    elif proposal["status"] == ProposalStatus.SUCCEEDED:
        output.note(f"{name} succeeded.", style="green")
    else:
        output.note(f"{name} is {proposal['status']}. It goes on without this command.")
    return code
