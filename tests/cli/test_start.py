"""Starting is light, global options may stand anywhere, and usage errors are sentences."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meta_agent.cli import app, gather
from meta_agent.cli.output import clean

HEAVY = (
    "langgraph",
    "langchain_core",
    "fastapi",
    "dbos",
    "torch",
    "litellm",
    "sqlalchemy",
    "uvicorn",
    "openai",
)
PROBE = f"""
import sys
sys.argv = ["meta-agent", "--help"]
from meta_agent.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def test_help_loads_nothing_heavy_and_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.strip().splitlines()[-1] == "[]"
    for word in ("scan", "rollout", "approvals", "doctor", "up", "audit"):
        assert word in done.stdout
    # 0.35 s on an idle machine; the bound is for a busy one, and far below one heavy import.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["rank", "x", "--json"], ["--json", "rank", "x"]),
        (["scan", "--config", "a.yaml", "--no-wait"], ["--config", "a.yaml", "scan", "--no-wait"]),
        (["scan", "--config=a.yaml"], ["--config=a.yaml", "scan"]),
        (["scan", "--", "--json"], ["scan", "--", "--json"]),
        (["scan", "--key"], ["--key", "scan"]),
        (["scan", "--reason", "--keyless"], ["scan", "--reason", "--keyless"]),
    ],
)
def test_global_options_may_stand_anywhere(written: list[str], read: list[str]) -> None:
    assert gather(written) == read


@pytest.mark.parametrize("arguments", [["no-such"], ["rank"], ["scan", "--no-such"], ["rollout", "watch"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_wrong_configuration_says_where(tmp_path: Path) -> None:
    config = tmp_path / "meta-agent.yaml"
    config.write_text("agent:\n  speed: 3\n")
    done = CliRunner().invoke(app, ["scan", "--config", str(config)])
    assert done.exit_code == 2
    assert f"{config}:2" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", ["migrate", "worker"])
def test_processes_read_the_same_configuration(command: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    for arguments in ([command, "--config", str(missing)], ["--config", str(missing), command]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert "there is no such file" in done.stderr


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("meta-agent ")


def test_text_of_strangers_cannot_paint_the_terminal() -> None:
    assert clean("a\x1b[2J\x07b\r\nc\u202e") == "a[2Jb\nc"
