"""Use cases: list, show with what they used, and change how they are served."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meta_agent.cli.assignments import parse_assignments
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.keys import usage_facts
from meta_agent.cli.output import make_facts, make_table

app = typer.Typer(help="Use cases and how they are served.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the use case.")]


@app.command("list")
def list_use_cases(context: typer.Context) -> None:
    """Every use case."""
    call = current(context)
    found = call.client.list("use-cases")
    call.output.data(found)
    rows = [
        (each["name"], each["risk"], each["budget_usd_per_month"], each["serving"] or "as by default")
        for each in found
    ]
    call.output.show(make_table("", ["use case", "risk", "USD a month", "serving"], rows))


@app.command()
def show(context: typer.Context, name: Name) -> None:
    """One use case: how it is served, and what it used today and in this month."""
    from meta_agent.cli.client import segment

    call = current(context)
    found = call.client.get(f"use-cases/{segment(name)}")
    used = call.client.get(f"use-cases/{segment(name)}/usage")
    call.output.data(found | {"usage": used})
    _show(call, found)
    call.output.show(make_facts("Live traffic", usage_facts(used["live"])))
    call.output.show(make_facts("Shadow copies", usage_facts(used["shadow"])))


@app.command("set")
def change(
    context: typer.Context,
    name: Name,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="As under use_cases[].gateway in the settings: limits.requests_per_minute=60, "
            "capture=redacted; a value may be JSON; none is the default again.",
        ),
    ],
) -> None:
    """Change how a use case is served. Gateways know within a second or so."""
    from meta_agent.cli.client import segment

    call = current(context)
    changed = call.client.patch(f"use-cases/{segment(name)}", {"serving": parse_assignments(assignments)})
    call.output.data(changed)
    _show(call, changed)


def _show(call: Invocation, use_case: dict[str, Any]) -> None:
    facts: dict[str, Any] = {
        "risk": use_case["risk"],
        "assigned by": use_case["assignment_unit"],
        "budget (USD a month)": use_case["budget_usd_per_month"],
    }
    serving = use_case["serving"] or {"serving": "as by default"}
    call.output.show(make_facts(use_case["name"], facts | serving))
