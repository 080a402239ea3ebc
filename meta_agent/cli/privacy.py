"""What is kept of people: remove all of one of them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from meta_agent.cli.failures import usage
from meta_agent.cli.invocation import current
from meta_agent.cli.output import make_facts

app = typer.Typer(help="What is kept of people.", no_args_is_help=True)

_COUNTED = ("interactions", "feedback", "evaluation_cases", "incidents")


@app.callback()
def group() -> None:
    """Keep erase a command of its own, although it is the only one."""


@app.command()
def erase(
    context: typer.Context,
    user: Annotated[
        str, typer.Option(help="The user as applications name them; - reads it from standard input.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what a user said and was told. It cannot be brought back."""
    call = current(context)
    name = sys.stdin.readline().strip() if user == "-" else user
    if not name:
        raise usage("Nobody is named; give --user.")
    call.confirm("Remove everything that this user said and was told?", yes)
    total = dict.fromkeys(_COUNTED, 0)
    complete = False
    while not complete:
        erased = call.client.post("privacy/erasures", {"user": name})
        total = {each: total[each] + int(erased[each]) for each in _COUNTED}
        complete = erased["complete"]
    call.output.data(total)
    call.output.show(make_facts("Removed", {**total, "incidents": f"{total['incidents']} lost their link"}))
    call.output.note("Gateways may hold a little that is not stored yet: run this once more in a minute.")
