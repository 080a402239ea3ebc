"""How use cases are served: from settings and people to what gateways read, and nothing piles up."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from meta_agent import serving
from meta_agent.bootstrap import bootstrap
from meta_agent.serving import ServingError
from meta_agent.settings import Settings, load_settings
from storage import audit, deployments, use_cases
from storage.database import Database
from storage.routes import load_snapshot
from storage.routing import Serving
from storage.vocabulary import Capture, OverBudget

RULES: dict[str, Any] = {
    "limits": {"requests_per_minute": 60, "usd_per_day": 2.5, "over_budget": "downgrade"},
    "capture": "redacted",
    "retention_days": 30,
    "fallbacks": [
        {
            "provider": "other",
            "model": "small",
            "parameters": {"temperature": 0},
            "system_prompt": "Be kind.",
        },
        {"provider": "lab", "model": "big"},
    ],
    "downgrade": {"provider": "other", "model": "tiny"},
}


def settings_of(tmp_path: Path, rules: dict[str, Any] | None = None, **more: Any) -> Settings:
    stories: dict[str, Any] = {"name": "stories", "stable": {"provider": "lab", "model": "big"}}
    document = {
        "home": str(tmp_path / "home"),
        "providers": [
            {"name": each, "kind": "openai_compatible", "base_url": "http://127.0.0.1:9/v1"}
            for each in ("lab", "other")
        ],
        "use_cases": [
            stories if rules is None else {**stories, "gateway": rules},
            {"name": "chat", "stable": {"provider": "lab", "model": "big"}},
        ],
        **more,
    }
    source = tmp_path / "meta-agent.yaml"
    source.write_text(yaml.safe_dump(document))
    return load_settings(source, {})


async def served(db: Database) -> Serving:
    async with db.connection() as connection:
        return (await load_snapshot(connection)).servings.get("stories", Serving())


async def stored(db: Database) -> dict[str, Any]:
    async with db.connection() as connection:
        found = await use_cases.find(connection, "stories")
    assert found is not None
    return found.serving


async def trail(db: Database) -> list[str]:
    async with db.connection() as connection:
        rows = await audit.list_rows(connection, subject="stories", event="serving.changed")
    return [each.actor for each in rows]


async def releases(db: Database) -> set[str]:
    async with db.connection() as connection:
        return {each.id for each in await deployments.list_releases(connection, "stories")}


async def change(db: Database, settings: Settings, patch: dict[str, Any]) -> None:
    async with db.transaction() as connection:
        await serving.change(connection, settings, "stories", patch, actor="user:anna")


async def test_rules_of_the_settings_reach_gateways(db: Database, tmp_path: Path) -> None:
    await bootstrap(db, settings_of(tmp_path, RULES))
    found = await served(db)
    assert found.limits.requests_per_minute == 60
    assert found.limits.usd_per_day == Decimal("2.5")
    assert found.limits.over_budget is OverBudget.DOWNGRADE
    assert found.capture is Capture.REDACTED
    first, second = found.fallbacks
    assert (first.deployment.model, first.deployment.parameters) == ("small", {"temperature": 0})
    assert first.deployment.system_prompt == "Be kind."
    assert second.deployment.model == "big"
    assert found.downgrade is not None
    assert found.downgrade.deployment.model == "tiny"
    assert len(await releases(db)) == 3, "the stable one is a fallback too, and not made twice"
    assert await trail(db) == ["settings"]


async def test_a_second_start_makes_nothing(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, RULES)
    await bootstrap(db, settings)
    before = await served(db), await releases(db)
    await bootstrap(db, settings)
    assert (await served(db), await releases(db)) == before
    changed = {**RULES, "limits": {}, "fallbacks": RULES["fallbacks"][:1]}
    await bootstrap(db, settings_of(tmp_path, changed))
    assert (await served(db)).fallbacks == before[0].fallbacks[:1]
    assert await releases(db) == before[1]
    assert await trail(db) == ["settings", "settings"]


async def test_prices_that_a_scan_has_found_survive_a_start(db: Database, tmp_path: Path) -> None:
    await bootstrap(db, settings_of(tmp_path, RULES))
    async with db.transaction() as connection:
        await connection.execute(text("update deployments set price_input = 0.5"))
    await bootstrap(db, settings_of(tmp_path, {**RULES, "capture": "full"}))
    assert {each.deployment.price_input for each in (await served(db)).fallbacks} == {Decimal("0.5")}


async def test_what_somebody_changed_stays_until_the_settings_say_something_new(
    db: Database, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, RULES)
    await bootstrap(db, settings)
    await change(db, settings, {"capture": "nothing"})
    await bootstrap(db, settings)
    assert (await served(db)).capture is Capture.NOTHING
    await bootstrap(db, settings_of(tmp_path, {**RULES, "retention_days": 31}))
    assert (await served(db)).capture is Capture.REDACTED
    assert await trail(db) == ["settings", "user:anna", "settings"]


async def test_rules_that_were_taken_out_of_the_settings_are_gone(db: Database, tmp_path: Path) -> None:
    await bootstrap(db, settings_of(tmp_path, RULES))
    await bootstrap(db, settings_of(tmp_path))
    assert await served(db) == Serving()


async def test_settings_that_say_nothing_touch_nothing(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await bootstrap(db, settings)
    await change(db, settings, {"capture": "nothing"})
    await bootstrap(db, settings)
    assert (await served(db)).capture is Capture.NOTHING


async def test_a_change_names_what_changes_and_the_rest_stays(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, RULES)
    await bootstrap(db, settings)
    before = await stored(db)
    await change(db, settings, {"limits": {"requests_per_minute": 5, "usd_per_day": None}})
    after = await stored(db)
    assert after["limits"] == {"requests_per_minute": 5, "over_budget": "downgrade"}
    assert {**after, "limits": before["limits"]} == before
    await change(db, settings, {"limits": {"requests_per_minute": 5}})
    assert len(await trail(db)) == 2, "what changes nothing is not put on record"


async def test_a_release_may_be_named_by_its_id(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, RULES)
    await bootstrap(db, settings)
    tiny = (await stored(db))["downgrade"]
    await change(db, settings, {"fallbacks": [tiny, {"provider": "other", "model": "fresh"}]})
    found = (await served(db)).fallbacks
    assert [each.deployment.model for each in found] == ["tiny", "fresh"]
    assert found[0].release_id == tiny


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"limits": {"rpm": 5}}, "limits.rpm: there is no such key"),
        ({"limits": {"requests_per_minute": "many"}}, "limits.requests_per_minute: Input should be a valid"),
        ({"limits": 5}, "limits: Input should be"),
        ({"capture": "some"}, "capture: Input should be 'nothing', 'metadata', 'redacted' or 'full'"),
        ({"fallbacks": "rel_x"}, "fallbacks: Input should be"),
        ({"fallbacks": [5]}, "fallbacks.0: Input should be"),
        ({"fallbacks": ["rel_x"]}, "stories has no release 'rel_x'"),
        ({"fallbacks": [{"provider": "ghost", "model": "x"}]}, "provider ghost, which is not configured"),
        ({"fallbacks": [{"provider": "lab", "model": "plans"}]}, "which plans for the agent"),
        ({"downgrade": None}, "over_budget: downgrade needs a downgrade"),
        ({"downgrade": {"provider": "lab"}}, "downgrade.model: Field required"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    db: Database, tmp_path: Path, patch: dict[str, Any], expected: str
) -> None:
    settings = settings_of(tmp_path, RULES, agent={"model": "lab/plans"})
    await bootstrap(db, settings)
    before = await stored(db), await releases(db)
    with pytest.raises(ServingError, match=expected):
        await change(db, settings, patch)
    assert (await stored(db), await releases(db)) == before


async def test_a_release_of_another_use_case_is_none_of_ours(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await bootstrap(db, settings)
    async with db.connection() as connection:
        [other] = await deployments.list_releases(connection, "chat")
    with pytest.raises(ServingError, match="stories has no release"):
        await change(db, settings, {"fallbacks": [other.id]})
