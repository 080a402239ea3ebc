"""The audit: list its rows, and verify its chain.

Verifying asks the database itself and no server of ours: whoever doubts the audit may doubt the API too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from meta_agent.cli.failures import Exit, Failure
from meta_agent.cli.invocation import current
from meta_agent.cli.output import make_table, moment

if TYPE_CHECKING:
    from storage.audit import Verification

app = typer.Typer(help="Who did what, in rows chained by hash.", no_args_is_help=True)


@app.command("list")
def list_rows(
    context: typer.Context,
    subject: Annotated[
        str | None, typer.Option(help="Only of this proposal, rollout, use case or key.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="Only this event, such as rollout.rolled_back.")] = None,
    before: Annotated[int | None, typer.Option(min=1, help="Only rows before this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
) -> None:
    """Rows, newest first."""
    call = current(context)
    found = call.client.list("audit", subject=subject, event=event, before=before, limit=limit)
    call.output.data(found)
    rows = [
        (each["sequence"], moment(each["at"]), each["actor"], each["event"], each["subject"], each["data"])
        for each in found
    ]
    columns = ["row", "at", "actor", "event", "subject", "data"]
    call.output.show(make_table("", columns, rows) if rows else "No row fits.")


@app.command()
def verify(context: typer.Context) -> None:
    """Walk the chain from its beginning; exits with 1 and the row's number where it is broken."""
    from meta_agent.runtime import open_database_url
    from meta_agent.settings import ConfigurationError
    from storage.database import DatabaseUnavailable

    call = current(context)
    try:
        with open_database_url(call.settings) as url:
            found = asyncio.run(_verify(url))
    except (*DatabaseUnavailable, ConfigurationError) as error:
        raise Failure(
            f"The database cannot be asked ({_first_line(error)}). Check database.url, or start it with "
            f"'meta-agent up'.",
            Exit.UNREACHABLE,
            "database_unavailable",
        ) from None
    call.output.data(
        {"intact": found.intact, "rows": found.rows, "broken_at": found.broken_at, "why": found.why}
    )
    if not found.intact:
        call.output.note(f"The audit is broken at row {found.broken_at}: {found.why}.", style="red")
        raise typer.Exit(Exit.FAILED)
    call.output.say(f"The audit is intact: {found.rows} rows, each chained to the one before.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


async def _verify(url: str) -> Verification:
    from storage import audit
    from storage.database import Database

    database = Database(url, pool_size=1)
    try:
        async with database.connection() as connection:
            return await audit.verify(connection)
    finally:
        await database.close()
