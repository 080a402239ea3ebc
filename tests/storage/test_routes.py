"""What gateways read: everything, and what has changed since, for little."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from storage import deployments, identities, routes, use_cases
from storage.clock import now
from storage.database import Connection, Database
from storage.routes import ArmSetting, load_changes, load_snapshot
from storage.routing import Limits, RoutingSnapshot, Serving, Waiting
from storage.servings import checked_serving
from storage.vocabulary import Arm, AssignmentUnit, Capture, OverBudget, Risk


async def _release(connection: Connection, use_case: str = "story", model: str = "big") -> str:
    deployment = await deployments.ensure_deployment(
        connection, provider="lab", model=model, price_input=Decimal("1e-6"), price_output=Decimal("2e-6")
    )
    return await deployments.create_release(
        connection, use_case=use_case, deployment_id=deployment, created_by="test"
    )


async def _route(connection: Connection, stable: str, use_case: str = "story", **arms: str) -> None:
    settings = [ArmSetting(Arm.STABLE, stable, 1.0)]
    settings += [ArmSetting(Arm(arm), release, 0.1) for arm, release in arms.items()]
    await routes.set_route(
        connection,
        use_case=use_case,
        arms=settings,
        assignment_unit=AssignmentUnit.USER,
        reason="test",
        created_by="test",
    )


async def _declare(connection: Connection, name: str = "story", **values: Any) -> None:
    await use_cases.declare(connection, name=name, risk=Risk.LOW, **values)


async def _loaded(db: Database) -> RoutingSnapshot:
    async with db.connection() as connection:
        return await load_snapshot(connection)


async def test_an_empty_database_is_an_empty_snapshot(db: Database) -> None:
    assert await _loaded(db) == RoutingSnapshot()


async def test_rules_come_with_the_deployments_of_their_releases(db: Database) -> None:
    async with db.transaction() as connection:
        await _declare(connection)
        await _declare(connection, "plain")
        first, second = [await _release(connection, model=each) for each in ("big", "small")]
        serving = {
            "limits": {"usd_per_day": "1.50", "over_budget": "downgrade"},
            "waiting": {"retries": 0, "idle_seconds": 5},
            "capture": "redacted",
            "fallbacks": [second, "rel_unknown", first],
            "downgrade": second,
        }
        assert await use_cases.set_serving(connection, "story", serving)
        assert not await use_cases.set_serving(connection, "unknown", {})
    servings = (await _loaded(db)).servings
    assert list(servings) == ["story"]
    found = servings["story"]
    assert found.limits == Limits(usd_per_day=Decimal("1.50"), over_budget=OverBudget.DOWNGRADE)
    assert (found.waiting, found.capture) == (Waiting(retries=0, idle_seconds=5), Capture.REDACTED)
    assert [(each.release_id, each.deployment.model) for each in found.fallbacks] == [
        (second, "small"),
        (first, "big"),
    ]
    assert found.downgrade == found.fallbacks[0]


@pytest.mark.parametrize(
    "serving",
    [
        {"limit": {}},
        {"limits": {"usd_per_dya": 1}},
        {"limits": {"usd_per_day": "much"}},
        {"limits": {"usd_per_day": "-1"}},
        {"limits": {"usd_per_day": "NaN"}},
        {"waiting": {"total_seconds": float("inf")}},
        {"waiting": {"retries": -1}},
        {"capture": "some"},
        {"fallbacks": "rel_1"},
        {"downgrade": 3},
        {"shadow": None},
    ],
)
def test_rules_that_mean_nothing_are_refused(serving: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="serving"):
        checked_serving(serving)


async def test_rules_that_cannot_be_read_cost_nobody_his_gateway(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {
        "a": '{"limits": {"concurrent": "many"}, "waiting": {"retries": 7}, "capture": "nothing"}',
        "b": '{"capture": "some", "fallbacks": [1]}',
        "c": '["no", "rules"]',
        "d": '{"of": "a newer version"}',
    }
    async with db.transaction() as connection:
        for name, serving in broken.items():
            await _declare(connection, name)
            await connection.execute(
                text("update use_cases set serving = (:serving)::jsonb where name = :name"),
                {"serving": serving, "name": name},
            )
    for _ in range(2):
        servings = (await _loaded(db)).servings
    assert servings["a"] == Serving(waiting=Waiting(retries=7), capture=Capture.NOTHING)
    # Whoever wanted to keep less than everything does not find everything kept.
    assert servings["b"] == servings["c"] == Serving(capture=Capture.METADATA)
    assert servings["d"] == Serving()
    assert len([each for each in caplog.messages if "limits of use case a" in each]) == 1


async def test_declaring_again_without_rules_keeps_them(db: Database) -> None:
    async with db.transaction() as connection:
        await _declare(connection, serving={"capture": "nothing"})
        await _declare(connection)
        found = await use_cases.find(connection, "story")
        assert found is not None
        assert found.serving == {"capture": "nothing"}
        await _declare(connection, serving={})
        assert (await load_snapshot(connection)).servings == {}


async def test_the_newest_releases_can_be_called_and_older_ones_that_served_or_are_named(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "NEWEST_RELEASES", 2)
    async with db.transaction() as connection:
        await _declare(connection)
        stable, routed, fallback, forgotten, *newest = [await _release(connection) for _ in range(6)]
        await deployments.mark_stable(connection, stable)
        await _route(connection, newest[0], shadow=routed)
        await use_cases.set_serving(connection, "story", {"fallbacks": [fallback]})
    releases = (await _loaded(db)).releases
    assert set(releases) == {stable, routed, fallback, *newest}
    assert forgotten not in releases


async def test_a_route_to_nowhere_costs_no_other_use_case_its_gateway(db: Database) -> None:
    async with db.transaction() as connection:
        await _declare(connection)
        await _declare(connection, "other")
        release = await _release(connection)
        await _route(connection, release, candidate="rel_unknown")
        await _route(connection, release, "other")
    found = (await _loaded(db)).routes
    assert [arm.release_id for arm in found["story"].arms] == [release]
    assert found["other"].find(Arm.STABLE) is not None


async def test_gateways_are_woken_by_every_change_and_by_no_repetition(db: Database) -> None:
    seen: list[str] = []
    ready = asyncio.Event()

    async def listen() -> None:
        async for _, payload in db.listen(routes.CHANNEL):
            seen.append(payload)
            ready.set()

    async def told(change: Callable[[Connection], Awaitable[Any]]) -> set[str]:
        seen.clear()
        async with db.transaction() as connection:
            await change(connection)
        async with db.transaction() as connection:
            await connection.execute(text("select pg_notify('routes', 'done')"))
        async with asyncio.timeout(5):
            while "done" not in seen:
                await asyncio.sleep(0.01)
        return set(seen) - {"done"}

    async with db.transaction() as connection:
        await _declare(connection)
    task = asyncio.create_task(listen())
    await ready.wait()
    made = await told(_release)
    assert made == {"story"}
    assert await told(lambda c: use_cases.set_serving(c, "story", {"capture": "nothing"})) == {"servings"}
    assert await told(lambda c: use_cases.set_serving(c, "story", {"capture": "nothing"})) == set()
    assert await told(lambda c: _declare(c, serving={"capture": "nothing"})) == set()
    assert await told(lambda c: _declare(c, serving={"capture": "full"})) == {"servings"}
    key = {"key_id": "k", "secret": "s", "name": "k", "scopes": ["infer"]}
    assert await told(lambda c: identities.ensure_key(c, **key)) == {"keys"}  # type: ignore[arg-type]  # as is
    assert await told(lambda c: identities.rotate_key(c, "k", grace=timedelta(1))) == {"keys"}
    assert await told(lambda c: identities.revoke_key(c, "k")) == {"keys"}
    dearer: dict[str, Any] = {"provider": "lab", "model": "big", "price_output": Decimal("2e-6")}
    same = await told(lambda c: deployments.ensure_deployment(c, price_input=Decimal("1e-6"), **dearer))
    moved = await told(lambda c: deployments.ensure_deployment(c, price_input=Decimal("9e-6"), **dearer))
    assert (same, moved) == (set(), {routes.PRICES})
    task.cancel()


@dataclass
class _World:
    """Changes of every kind, drawn at random."""

    db: Database
    random: random.Random
    releases: dict[str, list[str]] = field(default_factory=dict)

    async def change(self) -> None:
        kinds = [self.use_case, self.release, self.release, self.route, self.route, self.rules, self.key]
        async with self.db.transaction() as connection:
            kind = self.random.choice([*kinds, self.stable] if any(self.releases.values()) else kinds[:1])
            if not any(self.releases.values()) and self.releases:
                kind = self.release
            await kind(connection)

    def _any(self) -> tuple[str, str]:
        use_case = self.random.choice([name for name, made in self.releases.items() if made])
        return use_case, self.random.choice(self.releases[use_case])

    async def use_case(self, connection: Connection) -> None:
        name = f"u{self.random.randrange(4)}"
        await _declare(connection, name, serving=self.random.choice([None, {}, {"capture": "nothing"}]))
        self.releases.setdefault(name, [])

    async def release(self, connection: Connection) -> None:
        use_case = self.random.choice(list(self.releases))
        made = await _release(connection, use_case, self.random.choice("abc"))
        self.releases[use_case].append(made)

    async def route(self, connection: Connection) -> None:
        use_case, stable = self._any()
        arms = {"candidate": self._any()[1]} if self.random.random() < 0.5 else {}
        await _route(connection, stable, use_case, **arms)

    async def rules(self, connection: Connection) -> None:
        named = [self._any()[1], "rel_unknown", self._any()[1]]
        serving: dict[str, Any] = {"fallbacks": named[: self.random.randrange(4)]}
        if self.random.random() < 0.5:
            serving["downgrade"] = self._any()[1]
        await use_cases.set_serving(connection, self._any()[0], serving)

    async def stable(self, connection: Connection) -> None:
        await deployments.mark_stable(connection, self._any()[1])

    async def key(self, connection: Connection) -> None:
        name = f"k{self.random.randrange(3)}"
        if self.random.random() < 0.3:
            await identities.revoke_key(connection, name)
            return
        await identities.ensure_key(
            connection, key_id=name, secret=str(self.random.random()), name=name, scopes=["infer"]
        )


@pytest.mark.parametrize("seed", range(6))
async def test_changes_lead_to_what_a_whole_load_gives(
    db: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "NEWEST_RELEASES", 2)
    monkeypatch.setattr(routes, "_OVERLAP", timedelta(0))
    world = _World(db, random.Random(seed))
    known, since = RoutingSnapshot(), now()
    for _ in range(40):
        for _ in range(world.random.choice([1, 1, 3])):
            await world.change()
        read_at = now()
        async with db.connection() as connection:
            changed = await load_changes(connection, known, since)
            assert changed == await load_snapshot(connection)
        known, since = changed, read_at


async def test_what_has_not_changed_is_the_same_object(db: Database) -> None:
    async with db.transaction() as connection:
        await _declare(connection, serving={"capture": "nothing"})
        await _route(connection, await _release(connection))
        await identities.ensure_key(connection, key_id="k", secret="s", name="k", scopes=[])
    known = await _loaded(db)
    async with db.connection() as connection:
        same = await load_changes(connection, known, now())
    assert same == known
    for part in ("routes", "servings", "releases", "keys"):
        assert getattr(same, part) is getattr(known, part)


async def test_gateways_that_lag_are_named(db: Database) -> None:
    async with db.transaction() as connection:
        await routes.acknowledge(connection, "g1", 3)
        await routes.acknowledge(connection, "g2", 5)
        await routes.acknowledge(connection, "g1", 4)
        assert await routes.lagging_gateways(connection, 5) == ["g1"]
        assert await routes.lagging_gateways(connection, 4) == []
