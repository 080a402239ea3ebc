"""What is kept of a call, by what its use case says, and where its words must never turn up."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import TelemetryConfig
from storage.pseudonyms import pseudonym
from tests.gateway.conftest import PSEUDONYM_KEY, USE_CASE, Fleet, Running, config_for, lab, serving, until
from tests.gateway.sidecar.test_telemetry import Collector, collector  # noqa: F401  # a fixture
from tests.gateway.stories import MoodyUpstream, rows_of, serve_by

USER = "ann@example.com"
WORDS = "I am Ann, write to ann@example.com or call +1 415 555 2671 about card 4111 1111 1111 1111"
BODY: Any = {
    "model": USE_CASE,
    "messages": [{"role": "user", "content": WORDS}],
    "user": USER,
    "metadata": {"conversation_id": "c1"},
}
PRIVATE = ("ann@example.com", "415 555 2671", "4111 1111 1111 1111")


@pytest.fixture
async def upstream() -> AsyncIterator[MoodyUpstream]:
    async with MoodyUpstream().running() as server:
        assert isinstance(server, MoodyUpstream)
        yield server


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_what_is_kept_is_the_use_cases_to_say(
    gateway: Running, fleet: Fleet, upstream: MoodyUpstream, streamed: bool
) -> None:
    kept: dict[str, dict[str, Any]] = {}
    for capture in ("metadata", "redacted", "nothing", "full"):
        await serve_by(gateway, fleet, capture=capture)
        response = await gateway.post({**BODY, "stream": streamed})
        assert response.status_code == 200
        request_id = response.headers["x-request-id"]
        kept[capture] = (await rows_of(fleet, 1, f"id = '{request_id}'"))[0]
    somebody = pseudonym(PSEUDONYM_KEY, USER)
    for row in kept.values():
        assert (row["prompt_tokens"], row["status"], row["arm"]) == (10, "ok", "stable")
        assert float(row["cost_usd"]) > 0
        assert row["user_id"] in (somebody, None)
    whole = {name: json.dumps(row, default=str) for name, row in kept.items()}
    assert kept["full"]["response_text"].strip() == WORDS
    assert kept["full"]["request"]["messages"] == BODY["messages"]
    assert kept["full"]["request"]["user"] == somebody
    assert (kept["full"]["user_id"], kept["full"]["conversation_id"]) == (somebody, "c1")
    for secret in PRIVATE:
        assert all(secret not in whole[name] for name in ("redacted", "metadata", "nothing"))
    assert "I am Ann, write to" in kept["redacted"]["response_text"]
    assert kept["redacted"]["user_id"] == somebody
    for name in ("metadata", "nothing"):
        assert kept[name]["request"] is kept[name]["response_text"] is None
    assert kept["metadata"]["user_id"] == somebody
    assert kept["nothing"]["user_id"] is kept["nothing"]["conversation_id"] is None
    assert kept["nothing"]["unit"] not in ("c1", USER, None)
    assert len(upstream.requests) == 4
    assert all(WORDS in json.dumps(each) for each in upstream.requests), "the model is asked all the same"


async def test_errors_and_shadows_are_kept_by_the_same_rule(gateway: Running, fleet: Fleet) -> None:
    stable, failing = await fleet.release("echo"), await fleet.release("status:400")
    await gateway.serves(await fleet.route(stable, shadow=(failing, 1.0)))
    await serve_by(gateway, fleet, capture="metadata")
    await gateway.post(BODY)
    await gateway.serves(await fleet.route(failing))
    await gateway.post(BODY)
    await gateway.post({**BODY, "messages": "none"})
    rows = await rows_of(fleet, 4)
    assert sorted(row["status"] for row in rows) == ["error", "error", "ok", "rejected"]
    for row in rows:
        assert row["request"] is row["response_text"] is row["error_message"] is None
    await serve_by(gateway, fleet, capture="nothing")
    assert (await gateway.post({**BODY, "messages": "none"})).status_code == 400
    assert (await gateway.post(BODY)).status_code == 400
    assert len(await rows_of(fleet, 5)) == 5, "nobody is charged for a refusal: no line of it"


async def test_no_log_line_and_no_span_holds_words_or_names(
    fleet: Fleet,
    upstream: MoodyUpstream,
    tmp_path: Path,
    collector: Collector,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for noisy in ("httpcore", "httpx", "asyncio", "psycopg", "sqlalchemy"):  # of the test itself
        caplog.set_level(logging.WARNING, logger=noisy)
    token = await fleet.key()
    telemetry = TelemetryConfig(endpoint=collector.url, metrics_seconds=0.2)
    config = config_for(tmp_path, {"lab": lab(upstream.base_url)}, telemetry=telemetry)
    models = ["echo", "status:400", "status:500", "html", "half", "midstream-error", "hangup"]
    async with serving(config, fleet.db, token) as gateway:
        for model in models:
            await gateway.serves(await fleet.route(await fleet.release(model)))
            for streamed in (False, True):
                await gateway.post({**BODY, "stream": streamed})
        await gateway.post({**BODY, "messages": [{"content": WORDS}]})
        await gateway.post(content=WORDS)

        async def exported() -> bool:
            return len(collector.spans) == 2 * len(models) + 1

        await until(exported)
    secrets = (*PRIVATE, "I am Ann", token.rpartition("_")[2], "sk-of-the-provider")
    told = caplog.text + "".join(body.decode("latin-1") for body in collector.bodies)
    assert "chat echo" in told
    for secret in secrets:
        assert secret not in told
