"""How a use case is served, brought from what people write to what gateways read, and put on record.

People name deployments; gateways are given releases. Who names the same deployment again gets the same
release, so that nothing piles up however often the settings are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from meta_agent.serving_settings import ServingSettings, TargetSettings, sentences
from meta_agent.settings import Settings, UseCaseSettings, cannot_serve
from storage import audit, deployments, flags, registry, use_cases
from storage.database import Connection, lock_in_transaction

_LOCK = "servings"
_BY_SETTINGS = "settings"


class ServingError(ValueError):
    """Rules that cannot be taken; the message says why, one sentence for each reason."""


async def lock(connection: Connection) -> None:
    """Become the one who changes rules, until the end of the transaction. The audit is locked after it."""
    await lock_in_transaction(connection, _LOCK)


async def follow_settings(connection: Connection, settings: Settings, use_case: UseCaseSettings) -> None:
    """Bring the rules to what the settings say, if they say something else than the last time.

    What somebody has changed since by the API stays until then.
    """
    await lock(connection)
    written = use_case.gateway.model_dump(mode="json", exclude_unset=True)
    flag = f"serving_settings:{use_case.name}"
    if await flags.get(connection, flag, {}) != written:
        await declare(connection, settings, use_case.name, written, actor=_BY_SETTINGS)
        await flags.put(connection, flag, written, _BY_SETTINGS)


async def change(
    connection: Connection, settings: Settings, name: str, patch: Mapping[str, Any], *, actor: str
) -> None:
    """Change the rules by a JSON merge patch: what it does not name stays, null is the default again.

    Raises :class:`ServingError`.
    """
    await lock(connection)
    found = await use_cases.find(connection, name)
    if found is not None:
        await declare(connection, settings, name, merge(found.serving, patch), actor=actor)


async def declare(
    connection: Connection, settings: Settings, name: str, document: Mapping[str, Any], *, actor: str
) -> None:
    """Replace the rules of a use case, whose lock is held. In the document a release's id may stand for it.

    Raises :class:`ServingError`.
    """
    before = await use_cases.find(connection, name)
    serving = _read(await _with_deployments(connection, name, document))
    for target in serving.targets:
        if problem := cannot_serve(settings, target):
            raise ServingError(f"{name} cannot be served by {problem[1]}.")
    stored = serving.model_dump(mode="json", exclude_unset=True)
    for key in ("fallbacks", "downgrade"):
        if stored.get(key):
            stored[key] = await _bound(connection, name, document[key], getattr(serving, key), actor)
    await use_cases.set_serving(connection, name, stored)
    after = await use_cases.find(connection, name)
    if before is not None and after is not None and before.serving != after.serving:
        await audit.append(
            connection,
            actor=actor,
            event="serving.changed",
            subject=name,
            data={"use_case": name, "before": before.serving, "after": after.serving},
        )


def merge(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396: mappings are merged, null removes, all else replaces.

    >>> merge({"a": {"b": 1, "c": 2}, "d": [3]}, {"a": {"b": None}, "d": [4]})
    {'a': {'c': 2}, 'd': [4]}
    """
    merged = dict(document)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


async def bind_release(
    connection: Connection, use_case: str, target: TargetSettings, *, created_by: str, note: str
) -> str:
    """The newest release by which this use case can be served so; a new one if there is none."""
    content = target.model_dump()
    deployment = await deployments.find_same(connection, **content)
    if deployment is not None:
        deployment_id = deployment.id
        known = await deployments.newest_release(connection, use_case, deployment_id)
        if known is not None:
            return known
    else:
        offering = await registry.find_by_model(connection, target.provider, target.model)
        deployment_id = await deployments.ensure_deployment(
            connection,
            **content,
            # Not known before the first scan, which brings deployments to the prices it finds.
            price_input=(offering and offering.price_input) or Decimal(0),
            price_output=(offering and offering.price_output) or Decimal(0),
            offering_id=offering.id if offering else None,
        )
    return await deployments.create_release(
        connection, use_case=use_case, deployment_id=deployment_id, created_by=created_by, note=note
    )


def _read(document: Mapping[str, Any]) -> ServingSettings:
    try:
        return ServingSettings.model_validate(document)
    except ValidationError as error:
        raise ServingError(sentences(error)) from None


async def _with_deployments(
    connection: Connection, use_case: str, document: Mapping[str, Any]
) -> dict[str, Any]:
    """The document with a deployment for each id of a release."""
    read = dict(document)
    if isinstance(read.get("fallbacks"), list | tuple):
        read["fallbacks"] = [await _deployment(connection, use_case, each) for each in read["fallbacks"]]
    if "downgrade" in read:
        read["downgrade"] = await _deployment(connection, use_case, read["downgrade"])
    return read


async def _deployment(connection: Connection, use_case: str, given: Any) -> Any:
    if not isinstance(given, str):
        return given
    release = await deployments.find_release(connection, given)
    found = release and await deployments.find_deployment(connection, release.deployment_id)
    if release is None or found is None or release.use_case != use_case:
        raise ServingError(f"{use_case} has no release {given!r}; name one of its own, or a deployment.")
    return {key: getattr(found, key) for key in TargetSettings.model_fields}


async def _bound(
    connection: Connection,
    use_case: str,
    given: Any,
    targets: TargetSettings | tuple[TargetSettings, ...],
    actor: str,
) -> Any:
    """The releases of what was given; one that was given by its id stays that one."""
    if isinstance(targets, tuple):
        pairs = zip(given, targets, strict=True)
        return [await _bound(connection, use_case, each, target, actor) for each, target in pairs]
    if isinstance(given, str):
        return given
    return await bind_release(connection, use_case, targets, created_by=actor, note="stands in")
