"""Keys of applications and machines: list, create, limit, rotate, revoke."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer

from meta_agent.cli.assignments import parse_assignments
from meta_agent.cli.failures import usage
from meta_agent.cli.invocation import current
from meta_agent.cli.output import make_facts, make_table, moment
from storage.clock import now

app = typer.Typer(help="Keys for the gateway and for this API.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(help="Id of the key, as listed.")]


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """Every key, without secrets."""
    call = current(context)
    found = call.client.list("keys")
    call.output.data(found)
    rows = [
        (each["id"], each["name"], each["scopes"], each["use_cases"] or "every", each["acts_as"],
         each["limits"], moment(each["expires_at"]), moment(each["revoked_at"]))
        for each in found
    ]  # fmt: skip
    columns = ["key", "name", "scopes", "use cases", "acts as", "limits", "expires", "revoked"]
    call.output.show(make_table("", columns, rows))


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for, such as the application's name.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="At the gateway: infer, inspect (sees who answered, and the cost), pin, route, evaluate. "
            "Here: read, operate, approve, admin. May be repeated."
        ),
    ] = ["infer"],  # noqa: B006  # typer reads the default, nothing writes to it
    use_case: Annotated[
        list[str] | None, typer.Option(help="Only for this use case; may be repeated. Else for every one.")
    ] = None,
    acts_as: Annotated[str | None, typer.Option(help="The operator in whose name it speaks.")] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36500, help="Expires after so many days.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Such as requests_per_minute=60 or usd_per_day=5; may be repeated."),
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
        "limits": read_limits(limit) if limit else None,
    }
    created = call.client.post("keys", body)
    call.output.data(created)
    call.output.note(f"Key {created['id']} for {created['name']}; keep it now, it is not shown again:")
    call.output.say(created["key"])


def read_limits(assignments: Sequence[str]) -> dict[str, Any]:
    """What ``name=value`` says of limits; what they cannot be is said here already."""
    from pydantic import ValidationError

    from meta_agent.serving_settings import LimitsSettings, sentences

    given = parse_assignments(assignments)
    if unknown := given.keys() - LimitsSettings.model_fields.keys():
        known = ", ".join(LimitsSettings.model_fields)
        raise usage(f"There is no limit {', '.join(sorted(unknown))}; there are {known}.")
    try:
        LimitsSettings.model_validate(given)
    except ValidationError as error:
        raise usage(f"{sentences(error)}.") from None
    return given


@app.command()
def limits(
    context: typer.Context,
    key_id: KeyId,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LIMIT=VALUE]...", help="What to change; none takes a limit away."),
    ] = None,
) -> None:
    """Show what a key may take and what it took today, or change it."""
    from meta_agent.cli.client import segment

    call, path = current(context), f"keys/{segment(key_id)}"
    if assignments:
        changed = call.client.patch(path, {"limits": read_limits(assignments)})
        call.output.note(f"Key {key_id} is changed; gateways know within a second or so.")
    used = call.client.get(f"{path}/usage")
    allowed = changed if assignments else next(x for x in call.client.list("keys") if x["id"] == key_id)
    call.output.data({"limits": allowed["limits"], "usage": used})
    call.output.show(make_facts(f"Key {key_id}", {"limits": allowed["limits"] or "none"} | usage_facts(used)))


def usage_facts(used: dict[str, Any]) -> dict[str, object]:
    """What was used, one fact a line."""
    return {
        "requests today": used["day_requests"],
        "tokens today": used["day_tokens"],
        "USD today": used["day_cost_usd"],
        "USD this month": used["month_cost_usd"],
    }


@app.command()
def rotate(
    context: typer.Context,
    key_id: KeyId,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=2160, help="So long the old secret is valid as well; 0: not at all.")
    ] = 24.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Give a key a new secret. It is printed once, alone on stdout, and never again."""
    from meta_agent.cli.client import segment

    call = current(context)
    call.confirm(f"Rotate the key {key_id}? The old secret ends after {grace_hours:g} hours.", yes)
    rotated = call.client.post(f"keys/{segment(key_id)}/rotate", {"grace_hours": grace_hours})
    call.output.data(rotated)
    until = moment(rotated["previous_until"])
    call.output.note(f"Key {key_id}: the old secret is valid until {until}; keep the new one now:")
    call.output.say(rotated["key"])


@app.command()
def revoke(
    context: typer.Context,
    key_id: KeyId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make a key worthless from now on."""
    from meta_agent.cli.client import segment

    call = current(context)
    call.confirm(f"Revoke the key {key_id}?", yes)
    call.client.delete(f"keys/{segment(key_id)}")
    call.output.data({"id": key_id, "revoked": True})
    call.output.say(f"Key {key_id} is revoked.")
