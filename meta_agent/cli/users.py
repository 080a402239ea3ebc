"""Operators: list, create, change."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from meta_agent.cli.invocation import current
from meta_agent.cli.output import make_table, moment

app = typer.Typer(help="Operators of the console and the API.", no_args_is_help=True)


class RoleName(StrEnum):
    """What an operator may do; each includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


@app.command("list")
def list_users(context: typer.Context) -> None:
    """Every operator."""
    call = current(context)
    found = call.client.list("users")
    call.output.data(found)
    rows = [(each["name"], each["role"], moment(each["disabled_at"])) for each in found]
    call.output.show(make_table("", ["name", "role", "shut out"], rows))


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="How they log in: lower case, digits, . _ -")],
    role: Annotated[RoleName, typer.Option(help="What they may do.")] = RoleName.OPERATOR,
) -> None:
    """Add an operator. The password is made here and printed once, alone on stdout."""
    call = current(context)
    created = call.client.post("users", {"name": name, "role": role.value})
    call.output.data(created)
    call.output.note(f"{created['name']} may log in as {created['role']} with this password:")
    call.output.say(created["password"])


@app.command()
def role(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The operator.")],
    new: Annotated[RoleName, typer.Argument(help="The new role.")],
) -> None:
    """Change what an operator may do."""
    _change(context, name, {"role": new.value})


@app.command()
def disable(context: typer.Context, name: Annotated[str, typer.Argument(help="The operator.")]) -> None:
    """Shut an operator out, with their sessions and the keys that act as them."""
    _change(context, name, {"disabled": True})


@app.command()
def enable(context: typer.Context, name: Annotated[str, typer.Argument(help="The operator.")]) -> None:
    """Let an operator in again."""
    _change(context, name, {"disabled": False})


@app.command()
def password(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The operator.")],
    new: Annotated[
        str,
        typer.Option(prompt=True, hide_input=True, confirmation_prompt=True, help="At least 12 characters."),
    ],
) -> None:
    """Change a password; the operator's sessions end."""
    _change(context, name, {"password": new})


def _change(context: typer.Context, name: str, body: dict[str, object]) -> None:
    from meta_agent.cli.client import segment

    call = current(context)
    changed = call.client.patch(f"users/{segment(name)}", body)
    call.output.data(changed)
    call.output.say(f"{changed['name']}: {changed['role']}{', shut out' if changed['disabled_at'] else ''}.")
