"""The verbs: scan, rank, test, deploy, rollback. Each files a proposal; policy judges, a worker acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from meta_agent.cli.failures import Exit, usage
from meta_agent.cli.following import Json, find_of, follow, report
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.output import make_facts, make_table
from storage.vocabulary import ProposalStatus

UseCase = Annotated[str, typer.Argument(help="Name of the use case.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept with the proposal and in the audit.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before filing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the arguments, show them, file nothing.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the proposal to its end.")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Stop following after so many seconds.")]

_MOST_OFFERINGS = 1000
_SHOWN_CANDIDATES = 15


@dataclass(frozen=True)
class Filing:
    """How a proposal is filed and followed."""

    reason: str = ""
    yes: bool = True
    dry_run: bool = False
    wait: bool = True
    timeout: float | None = None


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(scan)
    app.command()(rank)
    app.command("test")(evaluate)  # pytest would take a function called test for one of its own
    app.command()(deploy)
    app.command()(rollback)


def scan(
    context: typer.Context,
    reason: Reason = "",
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Look at every source and record what is offered and what changed."""
    act(current(context), "scan", {}, Filing(reason, True, dry_run, wait, timeout))


def rank(
    context: typer.Context,
    use_case: UseCase,
    reason: Reason = "",
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Order the candidates for a use case, and say why the others are excluded."""
    call = current(context)
    require_use_case(call, use_case)
    act(call, "rank", {"use_case": use_case}, Filing(reason, True, dry_run, wait, timeout))


def evaluate(
    context: typer.Context,
    use_case: UseCase,
    offering: Annotated[str, typer.Argument(help="Id of an offering, or its name: model or provider/model.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Evaluate an offering against what serves now, on the suite and on recorded traffic."""
    call = current(context)
    require_use_case(call, use_case)
    arguments = {"use_case": use_case, "offering_id": find_offering(call, offering)["id"]}
    act(call, "test", arguments, Filing(reason, True, dry_run, wait, timeout))


def deploy(
    context: typer.Context,
    use_case: UseCase,
    release: Annotated[str, typer.Argument(help="Id of a tested release of the use case.")],
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Roll a tested release out: shadow, then a growing share, then all traffic."""
    call = current(context)
    require_use_case(call, use_case)
    found = _find_release(call, use_case, release)
    if not dry_run:
        call.confirm(f"Roll {found['provider']}/{found['model']} ({found['id']}) out to {use_case}?", yes)
    arguments = {"use_case": use_case, "release_id": found["id"]}
    act(call, "deploy", arguments, Filing(reason, yes, dry_run, wait, timeout))


def rollback(
    context: typer.Context,
    use_case: UseCase,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Go back to the last good release; which one that is, is looked up."""
    call = current(context)
    require_use_case(call, use_case)
    if not dry_run:
        call.confirm(f"Take {use_case} back to its last good release?", yes)
    act(call, "rollback", {"use_case": use_case}, Filing(reason, yes, dry_run, wait, timeout))


def act(call: Invocation, tool: str, arguments: Mapping[str, Any], filing: Filing) -> None:
    """File a proposal, follow it if asked, and end with the exit code that it earned."""
    if filing.dry_run:
        _show_dry_run(call, tool, arguments, filing.reason)
        return
    body = {"tool": tool, "arguments": dict(arguments), "reason": filing.reason}
    proposal = call.client.post("proposals", body)
    if filing.wait:
        proposal = follow(call.client, call.output, proposal, filing.timeout)
    # With --no-wait there is no result yet, and an older one must not pass for it.
    result = _result(call, proposal) if proposal["status"] == ProposalStatus.SUCCEEDED else None
    call.output.data({**proposal, "result": result})
    _show_result(call, tool, result)
    code = report(call.client, call.output, proposal)
    if code is not Exit.OK:
        raise typer.Exit(code)


def _show_dry_run(call: Invocation, tool: str, arguments: Mapping[str, Any], reason: str) -> None:
    call.output.data({"tool": tool, "arguments": dict(arguments), "reason": reason, "filed": False})
    call.output.show(
        make_facts("This would be filed:", {"tool": tool, **arguments, "reason": reason or None})
    )
    call.output.note("Nothing was filed. Policy judges what is filed, on the facts of that moment.")


def require_use_case(call: Invocation, name: str) -> None:
    """Refuse a use case that nobody declared, and say which there are."""
    known = [each["name"] for each in call.client.list("use-cases")]
    if name not in known:
        listed = ", ".join(known) or "none, declare them under use_cases in the configuration"
        raise usage(f"There is no use case {name!r}. There are: {listed}.")


def find_offering(call: Invocation, name: str) -> Json:
    """The offering of an id, or the only one that a name may mean."""
    if name.startswith("off_"):
        return _find_offering_by_id(call, name)
    model = name.rpartition("/")[2]
    listed = call.client.list("offerings", search=model[:200], limit=_MOST_OFFERINGS)
    found = [
        each
        for each in listed
        if name in (each["model"], each["external_id"], f"{each['provider']}/{each['model']}")
    ]
    reachable = [each for each in found if each["reachable"]] or found
    if len(reachable) == 1:
        return reachable[0]
    if not reachable:
        raise usage(f"No offering is called {name!r}. Find it in the console under Models, or scan first.")
    names = ", ".join(f"{each['id']} ({each['source']}: {each['external_id']})" for each in reachable[:10])
    raise usage(f"{name!r} may mean {len(reachable)} offerings; name one by its id: {names}.")


def _find_offering_by_id(call: Invocation, offering_id: str) -> Json:
    offset = 0
    while page := call.client.list("offerings", limit=_MOST_OFFERINGS, offset=offset):
        for each in page:
            if each["id"] == offering_id:
                return each
        offset += len(page)
    raise usage(f"There is no offering {offering_id}. Find it in the console under Models, or scan first.")


def _find_release(call: Invocation, use_case: str, release_id: str) -> Json:
    known = call.client.list("releases", use_case=use_case, limit=1000)
    for each in known:
        if each["id"] == release_id:
            return each
    names = ", ".join(f"{each['id']} ({each['provider']}/{each['model']})" for each in known[:10])
    raise usage(
        f"{use_case} has no release {release_id!r}. Its newest: {names or 'none; test an offering first'}."
    )


# --- what came of it ------------------------------------------------------------------


def _result(call: Invocation, proposal: Json) -> Json | None:
    """What a verb was asked for, read back: the ranking, the evaluation, or the outcome as it is."""
    if proposal["tool"] == "rank":
        return call.client.find(f"rankings/{proposal['use_case']}")
    if proposal["tool"] == "test":
        return find_of(call.client, "evaluations", proposal)
    outcome: Json | None = proposal["outcome"]
    return outcome


def _show_result(call: Invocation, tool: str, result: Json | None) -> None:
    if result is None:
        return
    show = {"scan": _show_scan, "rank": _show_ranking, "test": _show_evaluation}.get(tool)
    if show:
        show(call, result)
    else:
        call.output.show(make_facts("", result))


def _show_scan(call: Invocation, outcome: Json) -> None:
    rows = [
        (each["source"], each["offerings"], each["new"], each["changes"], each["error"] or "ok")
        for each in outcome.get("sources", [])
    ]
    call.output.show(make_table("", ["source", "offerings", "new", "changes", "state"], rows))


def _show_ranking(call: Invocation, ranking: Json) -> None:
    candidates = ranking["candidates"]
    rows = [
        (place, f"{each['provider']}/{each['model']}", each["list"].replace("_", " "),
         _percent(each["saving_share"]), each["offering_id"], each["why"])
        for place, each in enumerate(candidates[:_SHOWN_CANDIDATES], start=1)
    ]  # fmt: skip
    columns = ["#", "candidate", "state", "saves", "offering", "why"]
    call.output.show(make_table(f"{len(candidates)} candidates for {ranking['use_case']}", columns, rows))
    counts = ranking["excluded"].get("counts", {})
    excluded = [(reason.replace("_", " "), count) for reason, count in counts.items()]
    if excluded:
        call.output.show("", make_table("Excluded", ["reason", "offerings"], excluded))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _show_evaluation(call: Invocation, evaluation: Json) -> None:
    facts = {
        "evaluation": evaluation["id"],
        "status": evaluation["status"],
        "reason": evaluation["reason"],
        "cases": f"{evaluation['cases_done']} of {evaluation['cases_planned']}",
        "release": evaluation["candidate_release_id"],
        **{name: value for name, value in (evaluation["summary"] or {}).items() if name != "cases"},
    }
    call.output.show(make_facts("", facts))
    if evaluation["status"] == "passed":
        release = evaluation["candidate_release_id"]
        call.output.note(f"Roll it out with: meta-agent deploy {evaluation['use_case']} {release}")
