"""Rollouts: list, look, watch, pause, resume, abort."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from meta_agent.cli.failures import Exit, usage
from meta_agent.cli.following import Json, patiently, standing
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.output import clean, make_facts, make_table, moment
from meta_agent.cli.verbs import DryRun, Filing, Reason, Timeout, Wait, Yes, act
from storage.vocabulary import RolloutState

app = typer.Typer(help="Rollouts: the durable progression of a candidate.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Id of a rollout, or a use case: its running or newest one.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")]

_MARKS = {"done": "✔", "current": "▶", "paused": "⏸", "failed": "✘", "ahead": "·"}
_COLOURS = {"done": "green", "current": "cyan", "paused": "yellow", "failed": "red", "ahead": "dim"}


@app.command("list")
def list_rollouts(
    context: typer.Context,
    use_case: Annotated[str | None, typer.Option(help="Only of this use case.")] = None,
    limit: Limit = 20,
) -> None:
    """Rollouts, newest first."""
    call = current(context)
    found = call.client.list("rollouts", use_case=use_case, limit=limit)
    call.output.data(found)
    rows = [
        (each["id"], each["use_case"], _served(each["candidate"]), _served(each["stable"]),
         each["state"], f"{each['weight']:.0%}", moment(each["created_at"]), each["reason"])
        for each in found
    ]  # fmt: skip
    columns = ["rollout", "use case", "candidate", "stable", "state", "weight", "began", "why"]
    call.output.show(make_table("", columns, rows) if rows else "There is no rollout yet.")


@app.command()
def show(context: typer.Context, rollout: Name) -> None:
    """One rollout: its steps, and what the analysis says."""
    call = current(context)
    found = find_rollout(call, rollout)
    call.output.data(found)
    call.output.show(picture(found))


@app.command()
def watch(
    context: typer.Context,
    rollout: Name,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Follow a rollout to its end; exits with 1 if it was rolled back or aborted."""
    call = current(context)
    found = find_rollout(call, rollout)
    last = _paint(call, found, interval) if call.output.is_terminal else _tell(call, found, interval)
    if last["state"] != RolloutState.PROMOTED:
        raise typer.Exit(Exit.FAILED)


def _paint(call: Invocation, rollout: Json, interval: float) -> Json:
    with call.output.live() as paint:
        paint(picture(rollout))
        while not RolloutState(rollout["state"]).is_final:
            rollout = _next_look(call, rollout, interval)
            paint(picture(rollout))
    return rollout


def _tell(call: Invocation, rollout: Json, interval: float) -> Json:
    """Without a terminal: a line, or with ``--json`` an object, for each change."""
    said = ""
    while True:
        line = f"{rollout['id']} {standing(rollout)}"
        if line != said:
            said = line
            call.output.data(rollout)
            call.output.say(line)
        if RolloutState(rollout["state"]).is_final:
            return rollout
        rollout = _next_look(call, rollout, interval)


def _next_look(call: Invocation, rollout: Json, interval: float) -> Json:
    time.sleep(interval)
    return patiently(lambda: call.client.get(f"rollouts/{rollout['id']}"), call.output.note)


@app.command()
def pause(context: typer.Context, rollout: Name) -> None:
    """Hold a rollout where it is; traffic stays as it is split now."""
    _wish(current(context), rollout, "pause")


@app.command()
def resume(context: typer.Context, rollout: Name) -> None:
    """Let a paused rollout go on."""
    _wish(current(context), rollout, "resume")


def _wish(call: Invocation, name: str, wish: str) -> None:
    rollout = find_rollout(call, name)
    answer = call.client.post(f"rollouts/{rollout['id']}/{wish}")
    call.output.data(answer)
    call.output.say(f"{rollout['id']} was asked to {wish}; its run takes the wish at its next look.")


@app.command()
def abort(
    context: typer.Context,
    rollout: Name,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Stop a rollout and give all traffic back to the stable release."""
    call = current(context)
    found = find_rollout(call, rollout)
    if RolloutState(found["state"]).is_final:
        raise usage(f"The rollout {found['id']} has ended ({found['state']}); there is nothing to abort.")
    if not dry_run:
        call.confirm(f"Abort {found['id']} and give all of {found['use_case']} back to stable?", yes)
    act(call, "abort", {"rollout_id": found["id"]}, Filing(reason, yes, dry_run, wait, timeout))


def find_rollout(call: Invocation, name: str) -> Json:
    """The rollout of an id, or the running or newest one of a use case."""
    from meta_agent.cli.client import segment

    if name.startswith("ro_"):
        return call.client.get(f"rollouts/{segment(name)}")
    found = call.client.list("rollouts", use_case=name, limit=50)
    if not found:
        raise usage(f"{name!r} is no rollout, and no use case that has one; see 'meta-agent rollout list'.")
    return next((each for each in found if each["ended_at"] is None), found[0])


# --- the picture ----------------------------------------------------------------------


def picture(rollout: Json) -> RenderableType:
    """The step bar, the metrics, and the sentence that says why."""
    analysis = rollout["analysis"]
    facts = {
        "rollout": rollout["id"],
        "use_case": rollout["use_case"],
        "candidate": _served(rollout["candidate"]),
        "stable": _served(rollout["stable"]),
        "state": rollout["state"],
        "wish": rollout["requested"],
        "why": rollout["reason"] or analysis.get("why"),
    }
    parts: list[RenderableType] = [
        make_facts("", {name: value for name, value in facts.items() if value is not None}),
        Text(),
        _bar(rollout["steps"]),
    ]
    if analysis.get("metrics"):
        parts += [Text(), _metrics(analysis["metrics"])]
    return Group(*parts)


def _bar(steps: list[Json]) -> Text:
    bar = Text()
    for index, step in enumerate(steps):
        status = step["status"]
        seen = "" if step["seen"] is None else f" {step['seen']}/{step['needed'] or '?'}"
        bar.append(" ─ " if index else "")
        words = f"{_MARKS.get(status, '·')} {clean(step['label'])}{seen}"
        bar.append(words, style=_COLOURS.get(status, ""))
    return bar


def _metrics(metrics: list[dict[str, Any]]) -> RenderableType:
    rows = [
        (each["name"], each["candidate"], each["stable"],
         f"{each['e_value']:.3g} of {each['threshold']:.3g}",
         f"{each['units_candidate']} / {each['units_stable']}", each["phase"], each["why"])
        for each in metrics
    ]  # fmt: skip
    columns = ["metric", "candidate", "stable", "evidence of harm", "units", "phase", "why"]
    return make_table("", columns, rows)


def _served(served: Json) -> str:
    return f"{served['provider']}/{served['model']}"
