"""The approval queue: list, look, approve, reject. The evidence is shown before anything is asked."""

from __future__ import annotations

from typing import Annotated

import typer

from meta_agent.cli.failures import Exit, Failure
from meta_agent.cli.following import Json, show_rules
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.output import make_facts, make_table, moment
from storage.vocabulary import ApprovalWord, ProposalStatus

app = typer.Typer(help="Proposals that wait for a person.", no_args_is_help=True)

ProposalId = Annotated[str, typer.Argument(help="Id of the proposal.")]
Comment = Annotated[str, typer.Option(help="Kept with your word, and in the audit.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")]


@app.command("list")
def list_waiting(context: typer.Context) -> None:
    """What waits, the longest waiting first."""
    call = current(context)
    found = call.client.list("approvals")
    call.output.data(found)
    rows = [
        (each["id"], each["tool"], each["use_case"], each["proposer"],
         f"{len(each['approvals'])} of {each['approvals_needed']}", moment(each["expires_at"]),
         each["reason"])
        for each in found
    ]  # fmt: skip
    columns = ["proposal", "tool", "use case", "proposer", "approvals", "expires", "reason"]
    call.output.show(make_table("", columns, rows) if rows else "Nothing waits for a person.")


@app.command()
def show(context: typer.Context, proposal: ProposalId) -> None:
    """One proposal: what is asked, on which evidence, against which limits, and who spoke."""
    call = current(context)
    found = _find(call, proposal)
    call.output.data(found)
    _show(call, found)


@app.command()
def approve(context: typer.Context, proposal: ProposalId, comment: Comment = "", yes: Yes = False) -> None:
    """Give your word that exactly this may be done."""
    _speak(current(context), proposal, ApprovalWord.APPROVE, comment, yes)


@app.command()
def reject(context: typer.Context, proposal: ProposalId, comment: Comment = "", yes: Yes = False) -> None:
    """Say no: the proposal ends at once."""
    _speak(current(context), proposal, ApprovalWord.REJECT, comment, yes)


def _find(call: Invocation, proposal_id: str) -> Json:
    from meta_agent.cli.client import segment

    return call.client.get(f"proposals/{segment(proposal_id)}")


def _speak(call: Invocation, proposal_id: str, word: ApprovalWord, comment: str, yes: bool) -> None:
    proposal = _find(call, proposal_id)
    if proposal["status"] != ProposalStatus.WAITING:
        raise Failure(
            f"The proposal {proposal['id']} is {proposal['status']}; it does not wait for a word.",
            Exit.FAILED,
            "not_waiting",
        )
    _show(call, proposal)
    call.confirm(f"{word.capitalize()} this {proposal['tool']}?", yes)
    # What was shown is what the word binds: had anything moved meanwhile, the word would be refused.
    body = {
        "proposal_id": proposal["id"],
        "word": word,
        "binding_digest": proposal["binding_digest"],
        "comment": comment or None,
    }
    call.client.post("approvals", body)
    spoken = _find(call, proposal["id"])
    call.output.data(spoken)
    call.output.note(_after(spoken, word), style="green" if word is ApprovalWord.APPROVE else "red")


def _after(proposal: Json, word: ApprovalWord) -> str:
    if word is ApprovalWord.REJECT:
        return f"{proposal['id']} is rejected."
    said = sum(each["word"] == ApprovalWord.APPROVE for each in proposal["approvals"])
    missing = proposal["approvals_needed"] - said
    if proposal["status"] == ProposalStatus.WAITING and missing > 0:
        return f"{proposal['id']} has your approval; it waits for {missing} more."
    return f"{proposal['id']} has your approval; a worker judges it once more and carries it out."


def _show(call: Invocation, proposal: Json) -> None:
    facts = {
        "proposal": proposal["id"],
        "tool": proposal["tool"],
        **proposal["arguments"],
        "proposer": proposal["proposer"],
        "reason": proposal["reason"],
        "status": proposal["status"],
        "why": proposal["error"],
        "filed": moment(proposal["created_at"]),
        "expires": moment(proposal["expires_at"]),
        "approvals": f"{len(proposal['approvals'])} of {proposal['approvals_needed']}",
        "may_approve": proposal["roles"],
    }
    call.output.show(make_facts("", {name: value for name, value in facts.items() if value is not None}), "")
    show_rules(call.output, proposal["verdict"], only_fired=False)
    for each in proposal["approvals"]:
        comment = f": {each['comment']}" if each["comment"] else ""
        call.output.say(f"{moment(each['at'])} {each['approver']} ({each['role']}): {each['word']}{comment}")
