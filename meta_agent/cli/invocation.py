"""One call of the command line: its global options, and what follows from them when it is first needed."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from meta_agent.cli.failures import usage
from meta_agent.cli.output import Output

if TYPE_CHECKING:  # help and completion must not pay for what they do not use
    from meta_agent.cli.client import Client
    from meta_agent.settings import Settings


@dataclass(frozen=True)
class Invocation:
    """What stands before every command."""

    config: Path | None = None
    as_json: bool = False
    key: str | None = None
    url: str | None = None

    @functools.cached_property
    def output(self) -> Output:
        """Where to write."""
        return Output(self.as_json)

    @functools.cached_property
    def settings(self) -> Settings:
        """The configuration; what is wrong with it is said with file, line and fix."""
        from meta_agent.settings import ConfigurationError, load_settings

        try:
            return load_settings(self.config)
        except ConfigurationError as error:
            raise usage(str(error)) from None

    @functools.cached_property
    def client(self) -> Client:
        """The control plane of this installation, or of ``--url``."""
        from meta_agent.cli.client import Client, read_key

        # Whoever names both needs no configuration on this machine.
        if self.url and self.key:
            return Client(self.url, self.key.strip())
        return Client(self.url or self.settings.control.base_url, read_key(self.key, self.settings.home))

    def close(self) -> None:
        """Give back what was opened."""
        if "client" in self.__dict__:
            self.client.close()

    def confirm(self, question: str, yes: bool) -> None:
        """Ask before something changes. Without a terminal only ``--yes`` is an answer."""
        if yes:
            return
        if self.as_json or not sys.stdin.isatty():
            raise usage(f"{question} Nobody is here to answer: add --yes if that is meant.")
        if not typer.confirm(question, err=True):
            self.output.note("Nothing was done.")
            raise typer.Exit(1)


def current(context: typer.Context) -> Invocation:
    """The invocation that a command belongs to."""
    found = context.find_object(Invocation)
    return found if found is not None else Invocation()
