"""``make bench``: every benchmark, one table each."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("benchmarks.gateway", "benchmarks.agent_cycle", "benchmarks.rollback")


def main() -> int:
    """Run each in a process of its own, so that none measures another's leftovers."""
    return max(subprocess.run([sys.executable, "-m", name], check=False).returncode for name in BENCHMARKS)


sys.exit(main())
