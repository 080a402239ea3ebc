"""Keys of applications and machines: list, create, revoke."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from meta_agent.cli.invocation import current
from meta_agent.cli.output import make_table, moment
from storage.clock import now

app = typer.Typer(help="Keys for the gateway and for this API.", no_args_is_help=True)


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """Every key, without secrets."""
    call = current(context)
    found = call.client.list("keys")
    call.output.data(found)
    rows = [
        (each["id"], each["name"], each["scopes"], each["use_cases"] or "every", each["acts_as"],
         moment(each["expires_at"]), moment(each["revoked_at"]))
        for each in found
    ]  # fmt: skip
    columns = ["key", "name", "scopes", "use cases", "acts as", "expires", "revoked"]
    call.output.show(make_table("", columns, rows))


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for, such as the application's name.")],
    scope: Annotated[
        list[str], typer.Option(help="infer (the gateway), read, operate, approve or admin; may be repeated.")
    ] = ["infer"],  # noqa: B006  # typer reads the default, nothing writes to it
    use_case: Annotated[
        list[str] | None, typer.Option(help="Only for this use case; may be repeated. Else for every one.")
    ] = None,
    acts_as: Annotated[str | None, typer.Option(help="The operator in whose name it speaks.")] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36500, help="Expires after so many days.")
    ] = None,
) -> None:
    """Make a key. Its secret is printed once, alone on stdout, and never again."""
    call = current(context)
    body = {
        "name": name,
        "scopes": scope,
        "use_cases": use_case or None,
        "acts_as": acts_as,
        "expires_at": (now() + timedelta(days=days)).isoformat() if days else None,
    }
    created = call.client.post("keys", body)
    call.output.data(created)
    call.output.note(f"Key {created['id']} for {created['name']}; keep it now, it is not shown again:")
    call.output.say(created["key"])


@app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Id of the key, as listed.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make a key worthless from now on."""
    from meta_agent.cli.client import segment

    call = current(context)
    call.confirm(f"Revoke the key {key_id}?", yes)
    call.client.delete(f"keys/{segment(key_id)}")
    call.output.data({"id": key_id, "revoked": True})
    call.output.say(f"Key {key_id} is revoked.")
