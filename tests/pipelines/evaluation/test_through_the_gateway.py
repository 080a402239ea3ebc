"""Scan, rank, test, rank again: against provider processes and the real gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from gateway.app import Gateway
from gateway.server import Server, bind
from gateway.settings import GatewayConfig, ProviderConfig
from gateway.sidecar.in_process import InProcessSidecar
from pipelines.context import EvaluationSettings, ProviderAccess
from pipelines.discovery.rank import run_rank
from pipelines.discovery.scan import run_scan
from pipelines.evaluation.run import run_test
from storage import deployments, identities, interactions, registry, routes, use_cases
from storage.vocabulary import Arm, AssignmentUnit, InteractionKind, Risk

ROOT = Path(__file__).resolve().parents[3]
KIND = "openai_compatible"


@pytest.fixture(scope="module")
def providers():
    """Three provider processes: name to base URL."""
    started, urls = [], {}
    for persona in ("lab", "thrift", "rough"):
        command = [sys.executable, "-m", "meta_agent.demo.provider", "--persona", persona, "--port", "0"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    for process in started:
        words = process.stdout.readline().split()
        urls[words[1]] = words[3]
    yield urls
    for process in started:
        process.terminate()
        process.wait(timeout=5)
        process.stdout.close()


@pytest.fixture
async def served(db, providers, tmp_path):
    """The story-teller behind a real gateway; what a run needs to reach it."""
    async with db.transaction() as connection:
        suite = yaml.safe_load((ROOT / "examples/story_teller/suite.yaml").read_text())
        await use_cases.declare(connection, name="story-teller", risk=Risk.MEDIUM, suite=suite)
        deployment = await deployments.ensure_deployment(
            connection,
            provider="lab",
            model="atlas-large",
            price_input=Decimal("0.000003"),
            price_output=Decimal("0.000015"),
        )
        release = await deployments.create_release(
            connection, use_case="story-teller", deployment_id=deployment, created_by="config"
        )
        await routes.set_route(
            connection,
            use_case="story-teller",
            arms=[routes.ArmSetting(Arm.STABLE, release, 1.0)],
            assignment_unit=AssignmentUnit.CONVERSATION,
            reason="first",
            created_by="config",
        )
        key = await identities.ensure_key(
            connection,
            key_id="worker",
            secret="s3cret",
            name="worker",
            scopes=["infer", "pin", "evaluate", "inspect"],
        )
    config = GatewayConfig(
        gateway_id="gw-test",
        spool_dir=tmp_path,
        providers={
            name: ProviderConfig(name=name, kind=KIND, base_url=url) for name, url in providers.items()
        },
        flush_seconds=0.05,
    )
    app = Gateway(config, InProcessSidecar(db))
    await app.start()
    server = Server(app)
    listener = bind("127.0.0.1", 0)
    await server.listen(listener)
    yield {
        "gateway_url": f"http://127.0.0.1:{listener.getsockname()[1]}",
        "gateway_key": key,
        "evaluation": EvaluationSettings(concurrency=8),
        "providers": tuple(
            ProviderAccess(name=name, kind=KIND, base_url=url) for name, url in providers.items()
        ),
    }
    await server.stop(5)
    await app.stop()
    listener.close()


async def test_from_a_catalogue_to_a_deployable_candidate(db, served, start_run):
    scanned = await run_scan(start_run("prop_s", **served), {})
    assert (scanned["failed"], scanned["offerings"]) == ([], 3)

    first = await run_rank(start_run("prop_r1", **served), {"use_case": "story-teller"})
    assert (first["candidates"], first["deployable"], first["excluded"]) == (2, 0, {"current_model": 1})
    async with db.connection() as connection:
        by_model = {each.model: each for each in await registry.all_offerings(connection)}

    async def test(run_id, model):
        arguments = {"use_case": "story-teller", "offering_id": by_model[model].id}
        return await run_test(start_run(run_id, **served), arguments)

    good, careless = await test("prop_t1", "swift-mini"), await test("prop_t2", "rough-draft")
    assert good["status"] == "passed", good["reason"]
    assert good["summary"]["cases"] == 30
    assert 0 < good["summary"]["candidate"]["cost_usd"] < good["summary"]["stable"]["cost_usd"]
    assert careless["status"] == "failed"
    assert "no worse than stable" in careless["reason"]

    second = await run_rank(start_run("prop_r2", **served), {"use_case": "story-teller"})
    assert second["excluded"] == {"current_model": 1, "failed_recently": 1}
    assert (second["best"]["model"], second["best"]["list"]) == ("swift-mini", "deployable")

    async def logged():
        async with db.connection() as connection:
            return await interactions.recent(connection, kind=InteractionKind.EVALUATION, limit=1000)

    async with asyncio.timeout(10):
        while len(found := await logged()) < 120:
            await asyncio.sleep(0.05)
    by_release = Counter(each.release_id for each in found)
    assert by_release[good["candidate_release_id"]] == by_release[careless["candidate_release_id"]] == 30
