"""``meta-agent up``: everything on one machine, in the foreground, until Ctrl-C.

Starts the database, migrates it, starts gateway, control plane and worker, and with ``--demo`` a fleet of
simulated providers, an application that sends traffic, and the demo's hand of fate.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from meta_agent.demo import keys
from meta_agent.demo.personas import PERSONAS
from meta_agent.runtime import executor_lock, open_database_url, prepare_home, refuse_used_port
from meta_agent.settings import ConfigurationError, Settings
from meta_agent.supervisor import ProcessSpec, StartError, Supervisor
from storage.database import Database, DatabaseUnavailable, lock_is_held

ROOT = Path(__file__).parent.parent
DEMO_CONFIG = ROOT / "examples" / "demo" / "meta-agent.yaml"
STORY_TELLER = ROOT / "examples" / "story_teller" / "story_teller.py"

#: How long the processes of an `up` that was killed may take to end.
_ENDING_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How the demo is played."""

    rps: float = 20.0
    approve_after: float | None = 20.0  #: seconds until the operator on duty approves; None: never
    traffic: bool = True


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[bool]:
    """Hold the installation's lock; yields whether its last holder was killed.

    Raises :class:`ConfigurationError` when somebody holds it now.
    """
    with (home / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigurationError(
                f"{home} is in use by `meta-agent up` with process id {file.read().strip() or 'unknown'}; "
                "stop it, or set META_AGENT_HOME to another directory"
            ) from None
        file.seek(0)
        was_killed = bool(file.read())
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield was_killed
        file.truncate(0)


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
    users: dict[int, str] = {}
    for what, host, port, setting in wanted:
        if port in users:
            raise ConfigurationError(
                f"port {port} is meant for the {users[port]} and for the {what}; choose another by {setting}"
            )
        users[port] = what
        refuse_used_port(what, host, port, setting)


async def _ports_are_free(settings: Settings, demo: bool, patience: float) -> None:
    """Refuse used ports, after giving the processes of an ``up`` that was killed the time to end."""
    until = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return refuse_used_ports(settings, demo)
        except ConfigurationError:
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.2)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


async def up(settings: Settings, config: Path | None, demo: DemoOptions | None, console: Console) -> int:
    """Run until Ctrl-C; returns the exit code. Raises :class:`ConfigurationError`."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    prepare_home(settings.home)
    with only_one(settings.home) as was_killed:
        try:
            await _ports_are_free(settings, demo is not None, _ENDING_SECONDS if was_killed else 0)
            with contextlib.ExitStack() as stack:
                with console.status("starting PostgreSQL"):
                    url = stack.enter_context(open_database_url(settings))
                return await _run(settings, config, url, demo, console, stop)
        except ConfigurationError:
            # For the signal to arrive: Ctrl-C reaches the tools of PostgreSQL too, and they may be quicker.
            await asyncio.sleep(0.1)
            if stop.is_set():
                return 0
            raise


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
    starting = asyncio.create_task(_start(settings, env, url, demo, console, supervisor))
    stopping = asyncio.create_task(stop.wait())
    code = 0
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            starting.result()
            _announce(settings, demo, console)
            await stopping
    except StartError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        code = 1
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await supervisor.stop()
    console.print(f"stopped; everything is kept in {settings.home}", markup=False, soft_wrap=True)
    return code


async def _start(
    settings: Settings,
    env: dict[str, str],
    url: str,
    demo: DemoOptions | None,
    console: Console,
    supervisor: Supervisor,
) -> None:
    with console.status("migrating the database") as status:
        await _once("migrate", env)
        if demo is not None:
            await keys.issue(url, settings)
        for spec in _specs(settings, env, demo):
            status.update(f"starting {spec.name}")
            if spec.name == "worker":
                await _worker_id_is_free(settings.worker.id, url)
                spec = dataclasses.replace(spec, ready=lambda: _worker_runs(settings.worker.id, url))
            await supervisor.start(spec)


async def _worker_runs(worker_id: str, url: str) -> bool:
    """Whether anybody works under that id."""
    database = Database(url, pool_size=1)
    try:
        async with database.connection() as connection:
            return await lock_is_held(connection, executor_lock(worker_id))
    except DatabaseUnavailable:
        return False
    finally:
        await database.close()


async def _worker_id_is_free(worker_id: str, url: str) -> None:
    """Give a worker whose supervisor was killed the time to end. Raises :class:`StartError`."""
    until = asyncio.get_running_loop().time() + _ENDING_SECONDS
    while await _worker_runs(worker_id, url):
        if asyncio.get_running_loop().time() > until:
            raise StartError(
                f"another worker is running as {worker_id} on this database; "
                "give this one another id by META_AGENT__WORKER__ID"
            )
        await asyncio.sleep(0.2)


async def _once(command: str, env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *_meta_agent(command),
        env={**os.environ, **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to pass on
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode:
        raise StartError(f"meta-agent {command} failed:\n{output.decode(errors='replace').rstrip()}")


def _meta_agent(command: str) -> list[str]:
    return [sys.executable, "-m", "meta_agent.cli", command]


def _specs(settings: Settings, env: dict[str, str], demo: DemoOptions | None) -> Iterator[ProcessSpec]:
    if demo is not None:
        yield from _fleet(settings)
    for name, server in (("gateway", settings.gateway), ("control", settings.control)):
        # Asked on this machine, wherever others reach it.
        ready = f"http://{_reachable(server.host)}:{server.port}/healthz/ready"
        yield ProcessSpec(name=name, argv=_meta_agent(name), env=env, ready_url=ready)
    yield ProcessSpec(name="worker", argv=_meta_agent("worker"), env=env)
    if demo is not None:
        yield from _players(settings, demo)


def _reachable(host: str) -> str:
    """Where to find who listens on a host: all addresses of a machine are also its loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  # compared, never bound


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
        yield ProcessSpec(
            name="director", argv=[*argv, "--key-file", str(secrets / f"{keys.NIGHT_SHIFT}.key")]
        )
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
    password = secrets / "admin-password"
    if password.is_file():  # else the database knew its admin before this directory was made
        console.print(
            f"            user admin, password {password.read_text().strip()}", soft_wrap=True, markup=False
        )
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
