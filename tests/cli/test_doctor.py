"""The doctor sees what is there and what is missing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from meta_agent.cli import app
from meta_agent.runtime import executor_lock
from pipelines import engine
from storage.database import Database, session_locks


def _checks(output: str) -> dict[str, Any]:
    return {each["check"]: each for each in json.loads(output)["checks"]}


def test_what_runs_is_ok_and_what_does_not_is_told(control: Any) -> None:
    done = control.run("--json", "doctor")
    checks = _checks(done.stdout)
    good = ("configuration", "policy", "key", "database", "migrations", "clock", "control", "price map")
    assert {name: checks[name]["state"] for name in good} == dict.fromkeys(good, "ok")
    for name in ("gateway", "worker", "provider lab"):
        assert checks[name]["state"] == "fail"
        assert checks[name]["advice"]
    assert done.exit_code == 1
    assert "meta-agent worker" in control.run("doctor").stdout


async def test_a_worker_is_seen_by_its_lock(installation: Any) -> None:
    database = Database(installation.url, pool_size=1)
    try:
        async with session_locks(database) as locks:
            assert await locks.try_lock(executor_lock(installation.settings.worker.id))
            done = await asyncio.to_thread(installation.run, "--json", "doctor")
    finally:
        await database.close()
    assert _checks(done.stdout)["worker"]["state"] == "ok"


def test_the_lock_is_the_engines() -> None:
    assert executor_lock("worker-7") == engine._executor_lock("worker-7")


def test_a_broken_configuration_is_a_finding(tmp_path: Path) -> None:
    config = tmp_path / "meta-agent.yaml"
    config.write_text("speed: 3\n")
    done = CliRunner().invoke(app, ["--config", str(config), "--json", "doctor"])
    assert done.exit_code == 1
    assert "speed" in _checks(done.stdout)["configuration"]["found"]


def test_nothing_is_created_by_looking(tmp_path: Path) -> None:
    config = tmp_path / "meta-agent.yaml"
    config.write_text(f"home: {tmp_path}/home\ncontrol: {{port: 1}}\ngateway: {{port: 1}}\n")
    done = CliRunner().invoke(
        app, ["--config", str(config), "--json", "doctor"], env={"META_AGENT_HOME": None}
    )
    checks = _checks(done.stdout)
    assert checks["database"]["state"] == "fail"
    assert "meta-agent up" in checks["database"]["advice"]
    assert checks["key"]["state"] == "warn"
    assert not (tmp_path / "home").exists()
