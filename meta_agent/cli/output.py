"""What the terminal shows: tables and lines for people on stdout, or JSON alone; notes on stderr.

Whatever comes from the API may have been written by a model or a stranger: it is printed as plain text,
without markup and without control characters, so that it cannot paint over the terminal.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

#: Wide enough that a pipe gets whole lines: nobody looks at a terminal's edge there.
_PIPE_WIDTH = 240
#: Columns and facts whose words are states, and the colours of these words.
_STATES = frozenset({"state", "status", "says", "phase", "verdict", "outcome", "judged"})
_STYLES = {
    "ok": "green",
    "passed": "green",
    "succeeded": "green",
    "promoted": "green",
    "allow": "green",
    "warn": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
    "require_approval": "yellow",
    "fail": "red",
    "failed": "red",
    "denied": "red",
    "rejected": "red",
    "deny": "red",
    "rolled_back": "red",
    "aborted": "red",
}


class Output:
    """Where a command writes."""

    def __init__(self, as_json: bool) -> None:
        """With ``as_json`` stdout carries JSON and nothing else."""
        self.as_json = as_json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def data(self, value: Any) -> None:
        """Print a value as JSON, if that was asked for."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=False, default=str), flush=True)

    def show(self, *renderables: RenderableType) -> None:
        """Print for people; nothing with ``--json``."""
        if not self.as_json:
            for each in renderables:
                self._out.print(each)

    def say(self, text: str) -> None:
        """A line for people on stdout; nothing with ``--json``."""
        self.show(Text(clean(text)))

    def note(self, text: str, style: str = "") -> None:
        """A line on stderr, whatever stdout carries."""
        self._err.print(Text(clean(text), style=style))

    @contextlib.contextmanager
    def status(self) -> Iterator[Callable[[str], None]]:
        """A line on stderr that follows what happens; without a terminal, one line per change."""
        shown = ""

        def print_change(text: str) -> None:
            nonlocal shown
            if text != shown:
                shown = text
                self.note(text)

        if not self._err.is_terminal:
            yield print_change
            return
        with self._err.status(Text("…"), spinner="dots") as status:
            yield lambda text: status.update(Text(clean(text)))

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[RenderableType], None]]:
        """A picture on the terminal that is painted anew; callers check :attr:`is_terminal` first."""
        with Live(console=self._out, auto_refresh=False, transient=False) as live:
            yield lambda picture: live.update(picture, refresh=True)

    @property
    def is_terminal(self) -> bool:
        """A person looks at stdout."""
        return self._out.is_terminal and not self.as_json


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def clean(value: object) -> str:
    """Text as it may be printed: a line break stays, other control characters do not.

    >>> clean("a\\x1b[31mb\\nc")
    'a[31mb\\nc'
    """
    return "".join(each for each in str(value) if each == "\n" or each.isprintable())


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; cells are plain text, and words of state carry their colour."""
    table = Table(title=title or None, title_justify="left", header_style="bold", pad_edge=False, box=None)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[_text(column, value) for column, value in zip(columns, row, strict=True)])
    return table


def make_facts(title: str, facts: Mapping[str, object]) -> Table:
    """Names and values of one thing, one a line."""
    table = Table(title=title or None, title_justify="left", show_header=False, pad_edge=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(name, value))
    return table


def _text(name: str, value: object) -> Text:
    return Text(_cell(value), style=_STYLES.get(str(value), "") if name in _STATES else "")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return clean(", ".join(f"{key} {_cell(each)}" for key, each in value.items())) or "-"
    if isinstance(value, (list, tuple)):
        return clean(", ".join(_cell(each) for each in value)) or "-"
    return clean(value)


def moment(value: object) -> str:
    """A time of the API as people read it: local, to the second."""
    if not isinstance(value, str):
        return "-"
    try:
        return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return clean(value)
