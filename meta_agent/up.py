"""``meta-agent up``: everything on one machine, in the foreground, until Ctrl-C.

Starts the database, migrates it, starts gateway, control plane and worker, and with ``--demo`` a fleet of
simulated providers, an application that sends traffic, and the demo's hand of fate.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from meta_agent.demo import keys
from meta_agent.demo.personas import PERSONAS
from meta_agent.runtime import open_database_url
from meta_agent.settings import ConfigurationError, Settings
from meta_agent.supervisor import ProcessSpec, StartError, Supervisor

ROOT = Path(__file__).parent.parent
DEMO_CONFIG = ROOT / "examples" / "demo" / "meta-agent.yaml"
STORY_TELLER = ROOT / "examples" / "story_teller" / "story_teller.py"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How the demo is played."""

    rps: float = 20.0
    approve_after: float | None = 20.0  #: seconds until the operator on duty approves; None: never
    traffic: bool = True


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the installation's lock. Raises :class:`ConfigurationError` when somebody else does."""
    home.mkdir(parents=True, exist_ok=True)
    lock = home / "up.lock"
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigurationError(
                f"{home} is in use by `meta-agent up` with process id {file.read().strip() or 'unknown'}; "
                "stop it, or set META_AGENT_HOME to another directory"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def refuse_used_ports(settings: Settings, demo: bool) -> None:
    """Say which port is taken before anything is started."""
    wanted = [
        ("gateway", settings.gateway.host, settings.gateway.port, "META_AGENT__GATEWAY__PORT"),
        ("control plane", settings.control.host, settings.control.port, "META_AGENT__CONTROL__PORT"),
    ]
    if demo:
        wanted += [
            (f"simulated provider {each.name}", *_address(each.url), "base_url in the demo's configuration")
            for each in settings.providers
            if each.name in PERSONAS
        ]
    for what, host, port, setting in wanted:
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigurationError(
                    f"port {port} on {host}, for the {what}, cannot be used: {error.strerror}. "
                    f"Stop whoever uses it, or choose another by {setting}"
                ) from None


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


async def up(settings: Settings, config: Path | None, demo: DemoOptions | None, console: Console) -> int:
    """Run until Ctrl-C; returns the exit code."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    with only_one(settings.home):
        refuse_used_ports(settings, demo is not None)
        with contextlib.ExitStack() as stack:
            with console.status("starting PostgreSQL"):
                url = stack.enter_context(open_database_url(settings))
            return await _run(settings, config, url, demo, console, stop)


async def _run(
    settings: Settings,
    config: Path | None,
    url: str,
    demo: DemoOptions | None,
    console: Console,
    stop: asyncio.Event,
) -> int:
    env = {"META_AGENT_HOME": str(settings.home), "META_AGENT__DATABASE__URL": url}
    if config is not None:
        env["META_AGENT_CONFIG"] = str(config)
    supervisor = Supervisor(settings.home / "logs")
    try:
        with console.status("migrating the database") as status:
            await _once("migrate", env)
            if demo is not None:
                await keys.issue(url, settings)
            for spec in _specs(settings, env, demo):
                status.update(f"starting {spec.name}")
                await supervisor.start(spec)
                if stop.is_set():
                    return 0
        _announce(settings, demo, console)
        await stop.wait()
        return 0
    except StartError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    finally:
        with console.status("stopping"):
            await supervisor.stop()
        console.print("stopped; everything is kept in", str(settings.home))


async def _once(command: str, env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *_meta_agent(command),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise StartError(f"meta-agent {command} failed:\n{output.decode(errors='replace')}")


def _meta_agent(command: str) -> list[str]:
    return [sys.executable, "-m", "meta_agent.cli", command]


def _specs(settings: Settings, env: dict[str, str], demo: DemoOptions | None) -> Iterator[ProcessSpec]:
    if demo is not None:
        yield from _fleet(settings)
    gateway, control = settings.gateway.base_url, settings.control.base_url
    yield ProcessSpec(
        name="gateway", argv=_meta_agent("gateway"), env=env, ready_url=f"{gateway}/healthz/ready"
    )
    yield ProcessSpec(
        name="control", argv=_meta_agent("control"), env=env, ready_url=f"{control}/healthz/ready"
    )
    yield ProcessSpec(name="worker", argv=_meta_agent("worker"), env=env)
    if demo is not None:
        yield from _players(settings, demo)


def _fleet(settings: Settings) -> Iterator[ProcessSpec]:
    for provider in settings.providers:
        if provider.name in PERSONAS:
            host, port = _address(provider.url)
            argv = [sys.executable, "-m", "meta_agent.demo.provider", "--persona", provider.name]
            argv += ["--host", host, "--port", str(port)]
            # The bargain's model appears in the course of the story: see the director.
            argv += ["--unreleased"] if provider.name == "bargain" else []
            yield ProcessSpec(name=f"provider-{provider.name}", argv=argv, ready_url=f"{provider.url}/models")


def _players(settings: Settings, demo: DemoOptions) -> Iterator[ProcessSpec]:
    secrets = settings.home / "keys"
    bargain = settings.provider("bargain")
    if bargain is not None:
        argv = [sys.executable, "-m", "meta_agent.demo.director", "--control", settings.control.base_url]
        argv += ["--bargain", bargain.url.removesuffix("/v1")]
        argv += (
            ["--no-approve"] if demo.approve_after is None else ["--approve-after", str(demo.approve_after)]
        )
        yield ProcessSpec(name="director", argv=[*argv, "--key-file", str(secrets / f"{keys.NIGHT_SHIFT}.key")])
    if demo.traffic:
        argv = [sys.executable, str(STORY_TELLER), "--gateway", f"{settings.gateway.base_url}/v1"]
        argv += ["--rps", str(demo.rps)]
        key = (secrets / "story-teller.key").read_text().strip()
        yield ProcessSpec(name="story-teller", argv=argv, env={"STORY_TELLER_KEY": key})


def _announce(settings: Settings, demo: DemoOptions | None, console: Console) -> None:
    secrets = settings.home / "keys"
    console.print()
    console.print("[bold]Meta Agent is up.[/bold]")
    console.print(f"  Console   {settings.control.base_url}")
    password = (secrets / "admin-password").read_text().strip()
    console.print(f"            user admin, password {password}", soft_wrap=True)
    console.print(f"  Gateway   {settings.gateway.base_url}/v1")
    if demo is not None:
        key = (secrets / "story-teller.key").read_text().strip()
        console.print(f"  Key       {key}", soft_wrap=True)
        console.print("  Try it:")
        console.print(
            f"  curl -s {settings.gateway.base_url}/v1/chat/completions -H 'Authorization: Bearer {key}' "
            "-H 'Content-Type: application/json' -d '"
            '{"model": "story-teller", "messages": [{"role": "user", "content": '
            '"Tell a story about a brave fox named Ada. Finish with: The end."}]}\'',
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
        if demo.approve_after is not None:
            console.print(
                f"  The demo's operator on duty approves what waits longer than {demo.approve_after:.0f} s; "
                "be faster in the console, or run `meta-agent up --demo --no-approve`.",
                soft_wrap=True,
            )
    console.print(f"  Logs      {settings.home / 'logs'}")
    console.print("  Ctrl-C stops everything.")
