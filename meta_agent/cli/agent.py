"""The agent: what it did and will do next, and the switch that stops it from acting by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from meta_agent.cli.following import Json
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.output import make_facts, make_table, moment

app = typer.Typer(help="The agent that watches, proposes and acts.", no_args_is_help=True)


@app.command()
def status(context: typer.Context) -> None:
    """What the agent did and will do next."""
    call = current(context)
    _show(call, call.client.get("agent"))


@app.command()
def pause(context: typer.Context) -> None:
    """Stop the agent from acting by itself; it goes on looking, and people's proposals go on."""
    call = current(context)
    _show(call, call.client.post("agent/pause"))


@app.command()
def resume(context: typer.Context) -> None:
    """Let the agent act again."""
    call = current(context)
    _show(call, call.client.post("agent/resume"))


def _show(call: Invocation, agent: Json) -> None:
    call.output.data(agent)
    facts = {
        "agent": "paused" if agent["paused"] else "active",
        "paused_by": agent["paused_by"],
        "planner": agent["model"] if agent["planner"] == "llm" else agent["planner"],
        "autonomy": agent["autonomy"],
        "next_cycle": moment(agent["next_cycle_at"]),
    }
    call.output.show(make_facts("", {name: value for name, value in facts.items() if value is not None}))
    for line in agent["next"]:
        call.output.say(f"  {line}")
    rows = [
        (
            moment(each["started_at"]),
            each["trigger"],
            len(each["signals"] or []),
            each["error"] or each["summary"],
        )
        for each in agent["last_cycles"]
    ]
    if rows:
        call.output.show(
            "", make_table("Last cycles", ["began", "trigger", "signals", "what it made of it"], rows)
        )


@app.command()
def decisions(
    context: typer.Context,
    use_case: Annotated[str | None, typer.Option(help="Only of this use case.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
) -> None:
    """Decisions with their reasons, newest first."""
    call = current(context)
    found = call.client.list("decisions", use_case=use_case, limit=limit)
    call.output.data(found)
    rows = [
        (moment(each["at"]), each["actor"], each["use_case"], (each["action"] or {}).get("tool"),
         (each["verdict"] or {}).get("outcome"), _outcome(each["outcome"]), each["reason"])
        for each in found
    ]  # fmt: skip
    columns = ["at", "actor", "use case", "action", "verdict", "outcome", "reason"]
    call.output.show(make_table("", columns, rows) if rows else "No decision was made yet.")


def _outcome(outcome: Json | None) -> str | None:
    if outcome is None or "succeeded" not in outcome:
        return None
    return "succeeded" if outcome["succeeded"] else "failed"
