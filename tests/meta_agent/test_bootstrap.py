"""Bootstrap: what the settings declare reaches the database once, and later only what settings decide."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from meta_agent.bootstrap import bootstrap, check_declarations, read_suite, worker_key
from meta_agent.runtime import prepare_home, read_policy
from meta_agent.settings import ConfigurationError, Settings, load_settings
from storage import audit, deployments, identities, routes, use_cases
from storage.database import Database
from storage.routes import ArmSetting
from storage.vocabulary import Arm, AssignmentUnit

SUITE: dict[str, Any] = {
    "cases": [
        {"id": "fox", "messages": [{"role": "user", "content": "A fox?"}], "checks": [{"contains": "fox"}]}
    ]
}


def settings_of(tmp_path: Path, suite: dict[str, Any] = SUITE, **use_case: Any) -> Settings:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    document = {
        "home": str(tmp_path / "home"),
        "providers": [
            {"name": "lab", "kind": "openai_compatible", "base_url": "http://127.0.0.1:9/v1"},
            {"name": "other", "kind": "openai_compatible", "base_url": "http://127.0.0.1:9/v1"},
        ],
        "use_cases": [
            {"name": "stories", "suite": "suite.yaml", "stable": {"provider": "lab", "model": "big"}}
            | use_case
        ],
    }
    source = tmp_path / "meta-agent.yaml"
    source.write_text(yaml.safe_dump(document))
    return load_settings(source, {})


async def state(db: Database) -> dict[str, Any]:
    """Everything that a second start must leave alone."""
    async with db.connection() as connection:
        return {
            "routes": await routes.route_history(connection, "stories"),
            "deployments": await deployments.list_deployments(connection),
            "releases": await deployments.list_releases(connection, "stories"),
            "audit": await audit.list_rows(connection),
            "users": await identities.list_users(connection),
            "keys": [
                (each.id, each.scopes, each.created_at) for each in await identities.list_keys(connection)
            ],
            "use_case": await use_cases.find(connection, "stories"),
        }


async def test_a_second_start_changes_nothing(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await bootstrap(db, settings)
    before = await state(db)
    assert len(before["routes"]) == len(before["releases"]) == len(before["audit"]) == 1
    files = {each: each.read_bytes() for each in (settings.home / "keys").iterdir()}
    await bootstrap(db, settings)
    assert await state(db) == before
    assert {each: each.read_bytes() for each in (settings.home / "keys").iterdir()} == files
    assert {each.stat().st_mode & 0o777 for each in files} == {0o600}


async def test_starts_at_the_same_time_make_one_route(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    others = [Database(db.url, pool_size=1) for _ in range(4)]
    try:
        await asyncio.gather(*(bootstrap(each, settings) for each in others))
    finally:
        for each in others:
            await each.close()
    after = await state(db)
    assert len(after["routes"]) == len(after["releases"]) == len(after["audit"]) == 1
    assert [each.name for each in after["users"]] == ["admin"]


async def test_the_keys_that_are_written_are_valid(db: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await bootstrap(db, settings)
    operator = (settings.home / "keys" / "operator.key").read_text().strip()
    async with db.connection() as connection:
        worker = await identities.find_key(connection, worker_key(settings))
        found = await identities.find_key(connection, operator)
    assert worker is not None
    assert worker.scopes == ["evaluate", "infer", "inspect", "pin"]
    assert found is not None
    assert found.acts_as == "admin"


async def test_changed_settings_reach_the_use_case(db: Database, tmp_path: Path) -> None:
    await bootstrap(db, settings_of(tmp_path, budget_usd_per_month=5))
    first = (await state(db))["use_case"]
    changed = {"cases": [*SUITE["cases"], SUITE["cases"][0] | {"id": "owl"}]}
    rollout = {"due_seconds": 60}
    await bootstrap(db, settings_of(tmp_path, changed, budget_usd_per_month=9, risk="high", rollout=rollout))
    after = await state(db)
    assert (first.budget_usd_per_month, first.risk) == (5, "medium")
    assert (after["use_case"].budget_usd_per_month, after["use_case"].risk) == (9, "high")
    assert after["use_case"].rollout_plan == rollout
    assert after["use_case"].suite == changed
    assert after["use_case"].suite_digest != first.suite_digest
    assert len(after["routes"]) == len(after["audit"]) == 1


async def test_another_stable_does_not_overwrite_where_traffic_went(db: Database, tmp_path: Path) -> None:
    await bootstrap(db, settings_of(tmp_path))
    async with db.transaction() as connection:
        [first] = await deployments.list_releases(connection, "stories")
        promoted = await deployments.create_release(
            connection, use_case="stories", deployment_id=first.deployment_id, created_by="agent"
        )
        await routes.set_route(
            connection,
            use_case="stories",
            arms=[ArmSetting(Arm.STABLE, promoted, 1.0)],
            assignment_unit=AssignmentUnit.CONVERSATION,
            reason="promoted",
            created_by="agent",
        )
    before = await state(db)
    await bootstrap(db, settings_of(tmp_path, stable={"provider": "other", "model": "small"}))
    after = await state(db)
    assert after == before
    assert after["routes"][0].release_of(Arm.STABLE) == promoted


CASE = SUITE["cases"][0]


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ({}, "a suite holds a list of cases under the key cases"),
        ({"cases": "fox"}, "a suite holds a list of cases under the key cases"),
        ({"cases": [{"messages": []}]}, "case number 1 needs an id"),
        ({"cases": [CASE | {"checks": [{"contians": "fox"}]}]}, "case fox: check contians: there is no such"),
        (
            {"cases": [CASE | {"checks": [{"min_words": "many"}]}]},
            "case fox: check min_words: a whole number",
        ),
        ({"cases": [CASE | {"checks": []}]}, "case fox: a case without checks cannot fail"),
        ({"cases": [CASE | {"messages": "hello"}]}, "case fox: messages is a list of objects"),
        ({"cases": [CASE, CASE]}, "two cases have the id 'fox'"),
        ({"cases": [], "recorded_checks": [{"regex": "("}]}, "recorded_checks: check regex: the pattern"),
    ],
)
def test_a_malformed_suite_is_refused(tmp_path: Path, suite: dict[str, Any], expected: str) -> None:
    settings = settings_of(tmp_path, suite)
    with pytest.raises(ConfigurationError) as caught:
        check_declarations(settings)
    assert str(caught.value).startswith(f"{tmp_path / 'suite.yaml'}: {expected}")


def test_a_suite_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file or directory"):
        read_suite(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("cases: [")
    with pytest.raises(ConfigurationError, match=r"bad.yaml:1: this is not YAML: expected"):
        read_suite(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("use_case", "expected"),
    [
        ({"constraints": {"contxt": 5}}, "use case stories: the constraint 'contxt' is not known; known: "),
        ({"constraints": {"context": "big"}}, "use case stories: constraint context is a whole number"),
        ({"rollout": {"canry": []}}, "use case stories: its rollout plan: .*canry"),
        ({"rollout": {"shadow": {"share": 7}}}, "use case stories: its rollout plan: shadow.share"),
        ({"rollout": {"shadow": 7}}, "use case stories: its rollout plan: "),
        ({"rollout": {"canary": [{"weight": 0.5, "min_units": 9}]}}, "its rollout plan: the last canary"),
    ],
)
def test_what_only_a_pipeline_would_notice_is_refused(
    tmp_path: Path, use_case: dict[str, Any], expected: str
) -> None:
    settings = settings_of(tmp_path, **use_case)
    with pytest.raises(ConfigurationError, match=expected):
        check_declarations(settings)


def test_a_bad_policy_is_named_by_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("version: 1\ntires: {}\ntiers: {}\ntools: {}\nlimits: {}\n")
    settings = settings_of(tmp_path).model_copy(update={"policies": tmp_path / "rules.yaml"})
    with pytest.raises(ConfigurationError) as caught:
        read_policy(settings)
    lines = str(caught.value).splitlines()
    assert f"{tmp_path / 'rules.yaml'}: tires: unknown key" in lines
    assert all(line.startswith(f"{tmp_path / 'rules.yaml'}: ") for line in lines)
    absent = settings.model_copy(update={"policies": tmp_path / "absent.yaml"})
    with pytest.raises(ConfigurationError, match=r"absent.yaml: .*No such file"):
        read_policy(absent)


def test_a_home_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file cannot hold .*it is a file; set META_AGENT_HOME"):
        prepare_home(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="Not a directory; set META_AGENT_HOME"):
        prepare_home(tmp_path / "file" / "home")
    prepare_home(tmp_path / "home")
    parts = [tmp_path / "home", *(tmp_path / "home").iterdir()]
    assert {each.stat().st_mode & 0o777 for each in parts} == {0o700}
