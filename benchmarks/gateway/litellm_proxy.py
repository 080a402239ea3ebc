"""LiteLLM's proxy as a peer, in a virtual environment of its own under the user's cache directory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gateway.participants import Participant
from benchmarks.gateway.processes import cores, free_port, started
from benchmarks.gateway.stage import Stage

_REQUIREMENT = "litellm[proxy]>=1.106,<2"
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it is spared the check of keys
    "DATABASE_URL": "",
    "PYTHONPATH": "",  # this project's packages are not its own
}


class NotInstallableError(Exception):
    """Why there is no LiteLLM here."""


def _program() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "meta-agent" / "benchmark-litellm" / "bin" / "litellm"


def is_installed() -> bool:
    """Whether a run before this one has installed it."""
    return _program().exists()


def install() -> None:
    """Have it, by pip; the product's own environment is not touched."""
    if is_installed():
        return
    environment = _program().parents[1]
    print(f"installing {_REQUIREMENT} into {environment} ...", file=sys.stderr)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(environment)], [*pip, _REQUIREMENT]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            _program().unlink(missing_ok=True)
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            raise NotInstallableError(f"LiteLLM cannot be installed: {last}")


@contextlib.contextmanager
def litellm_proxy(stage: Stage) -> Iterator[Participant]:
    """One worker, one OpenAI-compatible model, no database, no telemetry."""
    port, configuration = free_port(), stage.directory / "litellm.json"
    model = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{stage.upstream}/v1", "api_key": "x"}
    settings = {
        "model_list": [{"model_name": "bench", "litellm_params": model}],
        "litellm_settings": {"telemetry": False},
    }
    configuration.write_text(json.dumps(settings))  # JSON is YAML
    command = [
        *(str(_program()), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1", "--telemetry", "False"),
    ]
    log = stage.directory / "litellm.log"
    with started(command, port, on=cores()[1], log=log, environment=_ENVIRONMENT) as pid:
        yield Participant("LiteLLM proxy", port, pid)
