"""Who is measured: the provider alone, nginx, a bare ASGI proxy, LiteLLM's proxy, and our gateway."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from benchmarks.gateway.processes import cores, cpu_us, free_port, started
from benchmarks.gateway.stage import Stage

_SHIP_SECONDS = 600.0  # after a minute without a database there is much to ship
#: What no worker's fast path may load.
FOREIGN = ("torch", "langgraph", "litellm", "sqlalchemy", "psycopg", "transformers")


@dataclass(frozen=True)
class Participant:
    """Something that answers chat completions."""

    name: str
    port: int
    pid: int | None  #: None: the provider itself, whose CPU nobody counts

    def cpu_us(self) -> dict[str, float]:
        """By part."""
        return cpu_us(self.pid) if self.pid else {}

    def settle(self) -> None:
        """Wait until nothing is left to do of what was asked."""


@dataclass(frozen=True)
class Gateway(Participant):
    """Ours, with a directory for its spool and its notes."""

    directory: Path

    def settle(self) -> None:
        """Wait until every row is in the database: a backlog belongs to those who caused it."""
        deadline = time.monotonic() + _SHIP_SECONDS
        while time.monotonic() < deadline:
            if not any(_size(path) for path in (self.directory / "spool").glob("*.jsonl")):
                return
            time.sleep(0.05)
        raise SystemExit(f"the gateway did not ship its log in {_SHIP_SECONDS:.0f} s")

    def foreign_modules(self) -> list[str]:
        """What this running worker has loaded of that which it must not."""
        loaded = json.loads(self.note("modules.json", Signals.SIGUSR2))
        return sorted({name.partition(".")[0] for name in loaded} & set(FOREIGN))

    def tell(self, number: Signals) -> None:
        """Tell the worker something."""
        assert self.pid
        os.kill(self.pid, number)

    def note(self, name: str, number: Signals) -> str:
        """What the worker writes down when it is told to."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        self.tell(number)
        deadline = time.monotonic() + 10
        while not path.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"the gateway did not write {name}")
            time.sleep(0.02)
        return path.read_text()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # shipped just now
        return 0


@contextlib.contextmanager
def our_gateway(
    stage: Stage, *, name: str = "gateway", port: int | None = None, on: set[int] | None = None
) -> Iterator[Gateway]:
    """The gateway with everything on, serving ``fleet.VARIANTS``."""
    port, directory = port or free_port(), stage.directory / name
    directory.mkdir()
    arguments = [name, str(port), str(stage.upstream), stage.postgres.url, str(directory)]
    command = [sys.executable, "-m", "benchmarks.gateway.gateway_process", *arguments]
    with started(command, port, on=on or cores()[1], log=directory / "log") as pid:
        _await_ready(port)
        yield Gateway("meta-agent gateway", port, pid, directory)


def _await_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/ready", timeout=5),
        ):
            return
        time.sleep(0.05)
    raise SystemExit("the gateway did not become ready in 30 s")


@contextlib.contextmanager
def nginx(stage: Stage) -> Iterator[Participant]:
    """One nginx worker with kept-alive connections."""
    if not shutil.which("nginx"):
        raise FileNotFoundError("nginx is not installed")
    port, directory = free_port(), stage.directory / "nginx"
    directory.mkdir(mode=0o777)
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/log;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};\n"
        f" fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n"
        f" keepalive_requests 100000000;\n"
        f" upstream provider {{ server 127.0.0.1:{stage.upstream}; keepalive 64;\n"
        "  keepalive_requests 100000000; }\n"
        f" server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://provider;\n"
        '  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    command = ["nginx", "-c", str(configuration), "-p", str(directory)]
    with started(command, port, on=cores()[1], log=directory / "out") as pid:
        yield Participant("nginx reverse proxy", port, pid)


@contextlib.contextmanager
def bare_asgi(stage: Stage) -> Iterator[Participant]:
    """A lean ASGI application on uvicorn, with nothing but a pool."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway.bare_asgi", str(port), str(stage.upstream)]
    with started(command, port, on=cores()[1], log=stage.directory / "asgi.log") as pid:
        yield Participant("bare ASGI proxy (uvicorn, own pool)", port, pid)


def provider_alone(stage: Stage) -> Participant:
    """Nothing in between."""
    return Participant("provider alone", stage.upstream, None)
