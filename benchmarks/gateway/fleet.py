"""What the benchmark's gateway serves: use cases that differ in one feature each, and a key.

``bench`` has everything on. Each variant has all of that but one, so that one gateway process can be
asked for any of them in turn, and what a feature costs is the difference between two of them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from benchmarks.gateway.load import KEY_ID, KEY_SECRET
from storage import deployments, identities, routes, use_cases
from storage.database import Database
from storage.vocabulary import Arm, AssignmentUnit, Risk

#: So high that nobody meets them; every request is counted and compared all the same.
LIMITS: dict[str, Any] = {
    "requests_per_minute": 1_000_000_000,
    "tokens_per_minute": 1_000_000_000_000,
    "concurrent": 100_000,
    "usd_per_day": 1_000_000_000,
    "usd_per_month": 10_000_000_000,
    "max_body_bytes": 1_000_000,
    "max_tokens": 100_000,
}
FREE_KEY_ID = "free"
FREE_KEY = f"ma_live_{FREE_KEY_ID}_{KEY_SECRET}"


@dataclass(frozen=True)
class Variant:
    """A use case of the benchmark."""

    name: str
    without: str  #: for the table
    limits: bool = True
    candidate: bool = True
    capture: str = "full"
    key_limits: bool = True

    @property
    def key(self) -> str:
        """With which it is asked for."""
        return f"ma_live_{KEY_ID if self.key_limits else FREE_KEY_ID}_{KEY_SECRET}"


FULL = Variant("bench", "everything on")
VARIANTS = (
    FULL,
    Variant("no-limits", "without limits on key and use case", limits=False, key_limits=False),
    Variant("no-candidate", "without a candidate arm", candidate=False),
    Variant("redacted", "texts redacted before they are kept", capture="redacted"),
    Variant("metadata", "without texts in the log", capture="metadata"),
    Variant("nothing", "without a log", capture="nothing"),
    Variant("least", "without all of these", False, False, "nothing", False),
)


def declare(url: str) -> None:
    """Write everything into the database."""
    asyncio.run(_declare(url))


async def _declare(url: str) -> None:
    database = Database(url)
    async with database.transaction() as connection:
        for variant in VARIANTS:
            await _declare_variant(connection, variant)
        for key_id, limits in ((KEY_ID, LIMITS), (FREE_KEY_ID, {})):
            await _taken(
                identities.ensure_key,
                connection,
                key_id=key_id,
                secret=KEY_SECRET,
                name=key_id,
                scopes=["infer"],
                limits=limits,
            )
    await database.close()


async def _declare_variant(connection: Any, variant: Variant) -> None:
    serving = {"limits": LIMITS if variant.limits else {}, "capture": variant.capture}
    await _taken(use_cases.declare, connection, name=variant.name, risk=Risk.LOW, serving=serving)
    stable, candidate = [
        await deployments.create_release(
            connection, use_case=variant.name, deployment_id=each, created_by="benchmark"
        )
        for each in (await _deployment(connection, "mock"), await _deployment(connection, "mock-2"))
    ]
    await set_route(connection, variant.name, stable, candidate if variant.candidate else None)


async def set_route(connection: Any, use_case: str, stable: str, candidate: str | None) -> None:
    """Conversations stick to their arm; a tenth of them is the candidate's."""
    arms = [routes.ArmSetting(Arm.STABLE, stable, 1.0)]
    if candidate:
        arms.append(routes.ArmSetting(Arm.CANDIDATE, candidate, 0.1))
    await routes.set_route(
        connection,
        use_case=use_case,
        arms=arms,
        assignment_unit=AssignmentUnit.CONVERSATION,
        reason="benchmark",
        created_by="benchmark",
    )


async def _deployment(connection: Any, model: str) -> str:
    return await deployments.ensure_deployment(
        connection, provider="mock", model=model, price_input=Decimal("1e-6"), price_output=Decimal("2e-6")
    )


async def _taken(function: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
    """Call with what this version of the product takes, so that older ones can be measured as well."""
    known = inspect.signature(function).parameters
    return await function(*arguments, **{name: value for name, value in named.items() if name in known})
