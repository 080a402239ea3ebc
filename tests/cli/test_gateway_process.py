"""The real ``meta-agent gateway``: it serves, alone or several, and loads nothing of the control plane."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

#: What belongs to other processes, by top-level name.
FOREIGN = {
    "alembic", "anthropic", "dbos", "fastapi", "httpx", "jinja2", "langchain_core", "langgraph", "litellm",
    "openai", "psycopg", "sqlalchemy", "torch",
}  # fmt: skip
OURS = {
    "meta_agent.agent",
    "meta_agent.api",
    "meta_agent.bootstrap",
    "meta_agent.serving",
    "pipelines",
    "tools",
}
LOADED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)", re.MULTILINE)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ask(control: Any, key: str) -> int:
    """The status of a small request for the use case."""
    request = urllib.request.Request(
        f"{control.settings.gateway.base_url}/v1/chat/completions",
        json.dumps({"model": "story-teller", "messages": [{"role": "user", "content": "Hello"}]}).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _children(pid: int) -> set[int]:
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def _libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_is_lean(installation: Any, tmp_path: Path, workers: int) -> None:
    log = tmp_path / "gateway.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable,
                "-X",
                "importtime",
                "-m",
                "meta_agent.cli",
                "gateway",
                "--workers",
                str(workers),
            ],
            env={**os.environ, "META_AGENT_CONFIG": str(installation.config)},
            stderr=stderr,
            text=True,
        )
    installation.processes.append(process)
    url = f"{installation.settings.gateway.base_url}/healthz/ready"
    installation.until(lambda: _is_ready(url))
    serving = {process.pid} if workers == 1 else _children(process.pid)
    assert len(serving) == workers
    for pid in serving:
        libraries = _libraries(pid)
        assert not [each for each in ("psycopg", "sqlalchemy", "torch", "langgraph") if each in libraries]
    process.terminate()
    assert process.wait(20) == 0
    said = log.read_text()
    loaded = set(LOADED.findall(said))
    assert {"gateway.process", "meta_agent.settings"} <= loaded
    assert {each.partition(".")[0] for each in loaded} & FOREIGN == set()
    assert loaded & OURS == set()
    assert "Traceback" not in said


def test_what_an_operator_changes_reaches_a_running_gateway(control: Any) -> None:
    control.start("gateway", "--workers", "2")
    control.until(lambda: _is_ready(f"{control.settings.gateway.base_url}/healthz/ready"))

    def by_all(key: str, *statuses: int) -> bool:
        return all(_ask(control, key) in statuses for _ in range(8))  # each may meet either gateway

    created = json.loads(control.run("--json", "keys", "create", "app").stdout)
    taken = (502, 503)  # the provider of this installation is a port that nobody listens on
    control.until(lambda: by_all(created["key"], *taken))
    control.run("use-cases", "set", "story-teller", "limits.requests_per_minute=1")
    control.until(lambda: by_all(created["key"], 429))
    control.run("use-cases", "set", "story-teller", "limits=none")
    control.until(lambda: by_all(created["key"], *taken))
    control.run("keys", "limits", created["id"], "max_body_bytes=10")
    control.until(lambda: by_all(created["key"], 413))
    control.run("keys", "limits", created["id"], "max_body_bytes=none")
    rotated = control.run("keys", "rotate", created["id"], "--grace-hours", "1", "--yes").stdout.strip()
    control.until(lambda: by_all(rotated, *taken))
    assert by_all(created["key"], *taken), "the old secret goes on for the grace"
    control.run("keys", "revoke", created["id"], "--yes")
    control.until(lambda: by_all(rotated, 401) and by_all(created["key"], 401))
