"""The command line: ``meta-agent``. Registers every command; does nothing by itself.

Starting must be light, so that help and completion are quick: what a command needs beyond typer and rich is
imported by the command when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from meta_agent.cli import (
    agent,
    approvals,
    audit,
    doctor,
    keys,
    policy,
    privacy,
    processes,
    rollouts,
    use_cases,
    users,
    verbs,
)
from meta_agent.cli.failures import Exit, Failure
from meta_agent.cli.invocation import Invocation, current

_FLAGS = frozenset({"--json"})
_OPTIONS = frozenset({"--config", "--key", "--url"})
_ASSIGNED = tuple(f"{each}=" for each in _OPTIONS)
_EPILOG = (
    "--json, --config, --key and --url may stand anywhere. Exit codes: 0 done, 1 failed, 2 usage, "
    "3 refused by policy or a person, 4 awaiting approval, 5 control plane unreachable."
)


def gather(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options first, wherever they were written.

    >>> gather(["rank", "story-teller", "--json", "--", "--json"])
    ['--json', 'rank', 'story-teller', '--', '--json']
    """
    first: list[str] = []
    rest: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*first, *rest, word, *left]
        if word in _FLAGS or word.startswith(_ASSIGNED):
            first.append(word)
        elif word in _OPTIONS:
            first += [word, *left[:1]]
            left = left[1:]
        else:
            rest.append(word)
    return [*first, *rest]


class Root(TyperGroup):
    """The edge: global options anywhere, and failures as sentences with their exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        return super().parse_args(ctx, gather(args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            output = current(ctx).output
            output.data(failure.to_json())
            output.note(failure.message, style="red")
            raise typer.Exit(failure.exit_code) from None
        except KeyboardInterrupt:
            current(ctx).output.note("Interrupted.")
            raise typer.Exit(Exit.INTERRUPTED) from None


app = typer.Typer(
    name="meta-agent",
    cls=Root,
    help="The control plane of the language models that an organisation runs.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold keys
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"meta-agent {version('meta-agent')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="Settings file; else META_AGENT_CONFIG, else ./meta-agent.yaml.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")] = False,
    key: Annotated[
        str | None,
        typer.Option(envvar="META_AGENT_KEY", help="Key for the control plane; else the installation's own."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="META_AGENT_URL", help="The control plane, if not the one of the settings."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Keep the global options for the command that follows."""
    call = context.obj = Invocation(config, as_json, key, url)
    context.call_on_close(call.close)
    if config is not None and isinstance(context.command, TyperGroup):
        # Commands that start processes name the file themselves; theirs is this one.
        context.default_map = {name: {"config": str(config)} for name in context.command.commands}


processes.register(app)
verbs.register(app)
doctor.register(app)
for _name, _group in {
    "rollout": rollouts.app,
    "approvals": approvals.app,
    "agent": agent.app,
    "audit": audit.app,
    "policy": policy.app,
    "use-cases": use_cases.app,
    "keys": keys.app,
    "privacy": privacy.app,
    "users": users.app,
}.items():
    app.add_typer(_group, name=_name)


def main() -> None:
    """The console script."""
    app()
