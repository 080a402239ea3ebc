"""Tables for readers, one JSON document for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Report:
    """What was found, printed section by section as it is found."""

    def __init__(self) -> None:
        self._sections: dict[str, Any] = {}

    def section(
        self, name: str, title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()
    ) -> None:
        """A table; its columns are the names of the first row."""
        self._sections[name] = {"title": title, "rows": list(rows), "notes": list(notes)}
        print(f"\n## {title}\n")
        if rows:
            print(f"| {' | '.join(rows[0])} |")
            print(f"|{'---|' * len(rows[0])}")
        for row in rows:
            print(f"| {' | '.join(map(_cell, row.values()))} |")
        for note in notes:
            print(f"\n{note}")
        print(flush=True)

    def write(self, path: Path) -> None:
        """For machines."""
        path.write_text(json.dumps(self._sections, indent=2) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)
