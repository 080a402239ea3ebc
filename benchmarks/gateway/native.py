"""The parts in C: compiled into a temporary directory, if there is a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parent / "native"


def build(name: str, directory: Path) -> Path | None:
    """The program of that name; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    program = directory / name
    if compiler and not program.exists():
        source = str(_SOURCES / f"{name}.c")
        subprocess.run([compiler, "-O2", "-o", str(program), source, "-lm"], check=True)
    return program if compiler else None
