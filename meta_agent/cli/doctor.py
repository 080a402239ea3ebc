"""The doctor: looks at every part that an installation needs, and says what to do about what is missing.

Looks only: nothing is started for good, repaired or written.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import typer

from meta_agent.cli.failures import LOOPBACK, Exit, Failure
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.output import make_table

if TYPE_CHECKING:
    import httpx

    from meta_agent.gateway_settings import ProviderSettings
    from meta_agent.settings import Settings
    from storage.database import Database

_HTTP_SECONDS = 5.0
_DISK_FAIL, _DISK_WARN = 200e6, 2e9  # bytes free
_SKEW_WARN, _SKEW_FAIL = 2.0, 60.0  # seconds
_LATE_CYCLES = 3.0  # intervals without a cycle before that is worth a word

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and what to do."""

    check: str
    state: State
    found: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(context: typer.Context) -> None:
    """Check configuration, database, processes and providers; exits with 1 if anything fails."""
    call = current(context)
    findings = list(examine(call))
    failed = [each for each in findings if each.state == "fail"]
    call.output.data({"ok": not failed, "checks": [asdict(each) for each in findings]})
    rows = [(each.check, each.state, each.found, each.advice) for each in findings]
    call.output.show(make_table("", ["check", "state", "found", "what to do"], rows))
    if failed:
        raise typer.Exit(Exit.FAILED)


def examine(call: Invocation) -> Iterator[Finding]:
    """Every check, in the order in which a broken one explains those after it."""
    try:
        settings = call.settings
    except Failure as failure:
        yield Finding("configuration", "fail", failure.message, "Mend the line that is named.")
        return
    yield Finding(
        "configuration", "ok", f"{len(settings.use_cases)} use cases, {len(settings.providers)} providers"
    )
    yield _check_policy(settings)
    yield _check_home(settings)
    yield _check_key(call)
    yield from _check_database(settings)
    yield from asyncio.run(_check_network(settings, call.url))
    yield _check_price_map()


# --- this machine ---------------------------------------------------------------------


def _check_policy(settings: Settings) -> Finding:
    from meta_agent.runtime import read_policy
    from meta_agent.settings import ConfigurationError

    try:
        policy = read_policy(settings)
    except ConfigurationError as error:
        return Finding("policy", "fail", str(error), "Mend the file; 'meta-agent policy test' tries it.")
    return Finding("policy", "ok", f"version {policy.version}, digest {policy.digest[:12]}")


def _check_home(settings: Settings) -> Finding:
    home = settings.home
    place = next(each for each in (home, *home.parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        advice = "Make it a directory of this user, or set META_AGENT_HOME."
        return Finding("home", "fail", f"{place} cannot be written to", advice)
    free = shutil.disk_usage(place).free
    found = f"{home}, {free / 1e9:.1f} GB free"
    if free < _DISK_WARN:
        state: State = "fail" if free < _DISK_FAIL else "warn"
        return Finding("home", state, found, "Free some space: database and interaction log live there.")
    return Finding("home", "ok", found)


def _check_key(call: Invocation) -> Finding:
    if call.key:
        return Finding("key", "ok", "given with --key or META_AGENT_KEY")
    path = call.settings.home / "keys" / "operator.key"
    if not path.is_file():
        advice = "'meta-agent up' or 'meta-agent migrate' writes it; elsewhere give one with META_AGENT_KEY."
        return Finding("key", "warn", f"there is no {path}", advice)
    if path.stat().st_mode & 0o077:
        return Finding("key", "warn", f"others can read {path}", f"chmod 600 {path}")
    return Finding("key", "ok", str(path))


def _check_price_map() -> Finding:
    from pipelines.discovery.sources.price_map import price_map_path

    path = price_map_path()
    if path is None:
        return Finding(
            "price map", "warn", "not installed", "pip install litellm: its price map is read as a file."
        )
    return Finding("price map", "ok", str(path))


# --- the database, and who is seen in it ----------------------------------------------


def _check_database(settings: Settings) -> list[Finding]:
    from meta_agent.runtime import open_database_url
    from storage.database import DatabaseUnavailable

    if settings.database.url is None and not (settings.home / "postgres").is_dir():
        advice = "'meta-agent up' makes one; or set database.url to a server of yours."
        return [Finding("database", "fail", "there is no embedded database yet", advice)]
    with ExitStack() as stack:
        try:
            url = stack.enter_context(open_database_url(settings))
            return asyncio.run(_ask_database(settings, url))
        except DatabaseUnavailable as error:
            advice = "Start the server, and check database.url: host, port, name, user, password."
            return [Finding("database", "fail", _first_line(error), advice)]
        except Exception as error:  # a doctor reports what it finds, whatever it is
            found = f"{type(error).__name__}: {_first_line(error)}"
            return [
                Finding(
                    "database", "fail", found, "Check database.url, or the directory of the embedded server."
                )
            ]


async def _ask_database(settings: Settings, url: str) -> list[Finding]:
    from storage.database import Database
    from storage.migrate import pending

    missing = await asyncio.to_thread(pending, url)
    where = "the server of database.url" if settings.database.url else "the embedded server"
    findings = [Finding("database", "ok", f"{where} answers")]
    if missing:
        findings.append(
            Finding("migrations", "fail", f"pending: {', '.join(missing)}", "Run 'meta-agent migrate'.")
        )
    else:
        findings.append(Finding("migrations", "ok", "none pending"))
    database = Database(url, pool_size=1)
    try:
        findings.append(await _check_clock(database))
        findings.append(await _check_worker(database, settings))
        if not missing:
            findings.append(await _check_cycle(database, settings))
    finally:
        await database.close()
    return findings


async def _check_clock(database: Database) -> Finding:
    from storage.clock import now
    from storage.database import server_time

    async with database.connection() as connection:
        theirs = await server_time(connection)
    skew = abs((theirs - now()).total_seconds())
    found = f"{skew:.1f} s apart from the database"
    if skew < _SKEW_WARN:
        return Finding("clock", "ok", found)
    state: State = "fail" if skew > _SKEW_FAIL else "warn"
    return Finding("clock", state, found, "Set both clocks by NTP: cool-downs and expiries compare them.")


async def _check_worker(database: Database, settings: Settings) -> Finding:
    from meta_agent.runtime import executor_lock
    from storage.database import lock_is_held

    async with database.connection() as connection:
        held = await lock_is_held(connection, executor_lock(settings.worker.id))
    if held:
        return Finding("worker", "ok", f"{settings.worker.id} runs")
    advice = "Start it with 'meta-agent worker' (or 'meta-agent up'): without one no proposal is carried on."
    return Finding("worker", "fail", f"no worker runs as {settings.worker.id}", advice)


async def _check_cycle(database: Database, settings: Settings) -> Finding:
    from storage import decisions, flags
    from storage.clock import now

    async with database.connection() as connection:
        cycles = await decisions.list_cycles(connection, 1)
        paused = await flags.get(connection, flags.AGENT_PAUSED, False)
    if paused:
        return Finding("agent", "warn", "paused", "'meta-agent agent resume' lets it act again.")
    if not cycles:
        return Finding("agent", "warn", "no cycle yet", "It makes one soon after the worker starts.")
    age = (now() - cycles[0].started_at).total_seconds()
    found = f"last cycle {age:.0f} s ago" + (f", failed: {cycles[0].error}" if cycles[0].error else "")
    if cycles[0].error or age > _LATE_CYCLES * settings.agent.interval_seconds:
        return Finding("agent", "warn", found, "Read the worker's log.")
    return Finding("agent", "ok", found)


# --- what answers over HTTP -----------------------------------------------------------


async def _check_network(settings: Settings, url: str | None) -> list[Finding]:
    import httpx

    control = (url or settings.control.base_url).rstrip("/")
    async with (
        httpx.AsyncClient(timeout=_HTTP_SECONDS) as outside,
        # A proxy of the surroundings has no part in a call that stays on this machine.
        httpx.AsyncClient(timeout=_HTTP_SECONDS, trust_env=False) as local,
    ):
        checks = [
            _check_process(
                _near(settings.gateway.base_url, local, outside), "gateway", settings.gateway.base_url
            ),
            _check_process(_near(control, local, outside), "control", control),
            *[_check_provider(_near(each.url, local, outside), each) for each in settings.providers],
        ]
        findings = list(await asyncio.gather(*checks))
    if not settings.providers:
        findings.append(Finding("providers", "warn", "none", "Add one under providers in the configuration."))
    return findings


def _near(url: str, local: httpx.AsyncClient, outside: httpx.AsyncClient) -> httpx.AsyncClient:
    return local if urlsplit(url).hostname in LOOPBACK else outside


async def _check_process(client: httpx.AsyncClient, name: str, base_url: str) -> Finding:
    import httpx

    try:
        answer = await client.get(f"{base_url}/healthz/ready")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = (
            f"Start it with 'meta-agent {name}' (or 'meta-agent up'), or mend {name}.host and {name}.port."
        )
        return Finding(name, "fail", f"{base_url} does not answer: {_reason(error)}", advice)
    if answer.is_success:
        return Finding(name, "ok", f"{base_url} is ready")
    return Finding(
        name, "fail", f"{base_url} answers {answer.status_code}: {answer.text[:200]}", "Read its log."
    )


async def _check_provider(client: httpx.AsyncClient, provider: ProviderSettings) -> Finding:
    import httpx

    name = f"provider {provider.name}"
    base_url = provider.url or ("https://api.anthropic.com/v1" if provider.kind == "anthropic" else "")
    if not base_url:
        return Finding(name, "ok", f"kind {provider.kind} has no address of its own; not asked")
    try:
        answer = await client.get(f"{base_url}/models", headers=_headers(provider))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = f"Check base_url of {provider.name}, and that its server runs."
        return Finding(name, "fail", f"{base_url} does not answer: {_reason(error)}", advice)
    if answer.is_success:
        return Finding(name, "ok", f"{base_url} answers")
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Finding(name, "fail", f"{base_url} refuses the key", f"Check api_key of {provider.name}.")
    if answer.status_code == httpx.codes.NOT_FOUND:
        advice = "It may still answer requests; a base_url usually ends in /v1."
        return Finding(name, "warn", f"{base_url}/models is not there", advice)
    return Finding(
        name, "warn", f"{base_url}/models answers {answer.status_code}", "Look at the provider's status."
    )


def _headers(provider: ProviderSettings) -> dict[str, str]:
    if provider.api_key is None:
        return {}
    key = provider.api_key.get_secret_value()
    if provider.kind == "anthropic":
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return {"authorization": f"Bearer {key}"}


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
