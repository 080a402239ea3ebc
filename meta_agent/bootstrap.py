"""From settings to a database that processes can start on: use cases, first routes, keys, operators.

Everything here may run at each start, by several processes at once: what exists is left as it is, or brought
to what the settings say now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from meta_agent import serving
from meta_agent.access import hash_password
from meta_agent.secrets import derive, installation_secret, read_or_create, write_secret
from meta_agent.settings import ConfigurationError, Settings, UseCaseSettings
from meta_agent.settings_file import yaml_problem
from pipelines.discovery.constraints import ConstraintsError, Demands
from pipelines.evaluation.suite import Suite, SuiteError
from pipelines.rollout.plan import RolloutPlan
from storage import audit, deployments, flags, identities, routes, use_cases
from storage.api_keys import format_key
from storage.database import Connection, Database, lock_in_transaction
from storage.routes import ArmSetting
from storage.vocabulary import Arm, Role

ADMIN = "admin"
#: The key by which the worker calls the gateway: it may pin a release and mark its calls as evaluation.
WORKER_KEY = "worker"
#: The key of this installation's command line.
OPERATOR_KEY = "operator"
#: Keys that follow from the installation's secret: each start brings them to what they are here.
INTERNAL_KEYS = frozenset({WORKER_KEY, OPERATOR_KEY})


def worker_key(settings: Settings) -> str:
    """The worker's key, as it is sent."""
    secret = derive(installation_secret(settings.home), "worker-gateway-key")
    return format_key(WORKER_KEY, secret)


async def bootstrap(database: Database, settings: Settings) -> None:
    """Bring the database to what the settings declare."""
    async with database.transaction() as connection:
        await lock_in_transaction(connection, "bootstrap")
        await flags.put(connection, flags.META_MODEL, settings.agent.model, "settings")
        await serving.lock(connection)  # before anything locks the audit
        for use_case in settings.use_cases:
            await _declare(connection, use_case, settings.rollout)
            await _first_route(connection, use_case)
            await serving.follow_settings(connection, settings, use_case)
        await _keys_and_people(connection, settings)


async def _declare(connection: Connection, use_case: UseCaseSettings, defaults: Mapping[str, Any]) -> None:
    await use_cases.declare(
        connection,
        name=use_case.name,
        risk=use_case.risk,
        assignment_unit=use_case.assignment_unit,
        constraints=use_case.constraints,
        budget_usd_per_month=use_case.budget_usd_per_month,
        rollout_plan={**defaults, **use_case.rollout},
        suite=read_suite(use_case.suite) if use_case.suite else None,
    )


def check_declarations(settings: Settings) -> None:
    """Refuse what would only fail once a pipeline reads it. Raises :class:`ConfigurationError`."""
    for use_case in settings.use_cases:
        try:
            Demands.from_json(use_case.constraints)
            RolloutPlan.from_json({**settings.rollout, **use_case.rollout})
        except ConstraintsError as error:
            raise ConfigurationError(f"use case {use_case.name}: {error}") from None
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"use case {use_case.name}: its rollout plan: {error}") from None
        if use_case.suite:
            read_suite(use_case.suite)


def read_suite(path: Path) -> dict[str, Any]:
    """A suite file as it is stored. Raises :class:`ConfigurationError`."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: the suite cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(yaml_problem(path, error)) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: the suite cannot be read: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("cases"), list):
        raise ConfigurationError(f"{path}: a suite holds a list of cases under the key cases")
    suite = dict(json.loads(json.dumps(document, default=str)))
    try:
        Suite.from_json(suite)
    except SuiteError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return suite


async def _first_route(connection: Connection, use_case: UseCaseSettings) -> None:
    """What serves a use case that has never been routed. Later routes are rollouts' affair."""
    if await routes.current_route(connection, use_case.name) is not None:
        return
    release_id = await serving.bind_release(
        connection, use_case.name, use_case.stable, created_by="settings", note="first release"
    )
    await deployments.mark_stable(connection, release_id)
    await routes.set_route(
        connection,
        use_case=use_case.name,
        arms=[ArmSetting(Arm.STABLE, release_id, 1.0)],
        assignment_unit=use_case.assignment_unit,
        reason="first route",
        created_by="settings",
    )
    await audit.append(
        connection,
        actor="settings",
        event="route.set",
        subject=use_case.name,
        data={"use_case": use_case.name, "serving": release_id, "reason": "first route"},
    )


async def _keys_and_people(connection: Connection, settings: Settings) -> None:
    secret = installation_secret(settings.home)
    await identities.ensure_key(
        connection,
        key_id=WORKER_KEY,
        secret=derive(secret, "worker-gateway-key"),
        name="worker (evaluations)",
        scopes=["infer", "pin", "evaluate", "inspect"],
    )
    if await identities.find_user(connection, ADMIN) is None:
        password = read_or_create(settings.home / "keys" / "admin-password")
        await identities.ensure_user(
            connection, name=ADMIN, password_hash=hash_password(password), role=Role.ADMIN
        )
    token = await identities.ensure_key(
        connection,
        key_id=OPERATOR_KEY,
        secret=derive(secret, "operator-key"),
        name="command line of this installation",
        scopes=["read", "operate", "approve", "admin"],
        acts_as=ADMIN,
    )
    write_secret(settings.home / "keys" / "operator.key", token)
