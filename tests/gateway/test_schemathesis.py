"""Requests made up from the gateway's own description, good ones and bad ones, and what it says to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.openapi import DOCUMENT
from tests.gateway.conftest import USE_CASE, Fleet, Running, config_for, lab, serving
from tests.gateway.fake_upstream import USAGE, FakeUpstream

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
PROPERTY = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DESCRIPTION = orjson.loads(DOCUMENT)


class PatientUpstream(FakeUpstream):
    """Answers whatever it is asked, as real ones do not."""

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> str:
        if "/embeddings " not in self.heads[-1].split("\r\n")[0]:
            return await super()._answer(request, writer)
        vectors = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
        body = orjson.dumps({**vectors, "usage": USAGE})
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        return "keep"


@pytest.fixture
async def gateway(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Running]:
    """One whose upstream is well, and a key that may do everything."""
    token = await fleet.key(scopes=("pin", "evaluate", "route"))
    version = await fleet.route(await fleet.release("say:hello"))
    async with PatientUpstream().running() as upstream:
        config = config_for(tmp_path / "spool", {"lab": lab(upstream.base_url, answer_seconds=20.0)})
        async with serving(config, fleet.db, token) as running:
            await running.serves(version)
            yield running


def operations() -> dict[str, Any]:
    schema = schemathesis.openapi.from_dict(orjson.loads(DOCUMENT))
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def attack(operation: Any, mode: GenerationMode, gateway: Running) -> int:
    """Try one operation from a thread; the number of requests that were not refused."""
    welcome = 0
    headers = {"authorization": f"Bearer {gateway.token}"}

    @PROPERTY
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def try_out(case: Any, known: bool) -> None:
        nonlocal welcome
        if known and isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = USE_CASE
        response = case.call(base_url=gateway.base_url, headers=headers, timeout=20)
        case.validate_response(response, checks=CHECKS)
        welcome += response.status_code < 300

    try_out()
    return welcome


def cases() -> list[Any]:
    """Operations, asked rightly and wrongly. A plain GET without parameters cannot be asked wrongly."""
    return [
        pytest.param(label, mode, id=f"{label}-{mode.value}")
        for label in operations()
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or "{" in label or not label.startswith("GET")
    ]


@pytest.mark.parametrize(("label", "mode"), cases())
async def test_what_the_description_says_is_true(gateway: Running, label: str, mode: GenerationMode) -> None:
    operation = operations()[label]
    run: Callable[..., int] = attack
    welcome = await asyncio.to_thread(run, operation, mode, gateway)
    if mode is GenerationMode.POSITIVE and "{" not in label:
        assert welcome, "no request got through: this has tried out nothing"


async def test_every_path_is_described(gateway: Running) -> None:
    described = {
        (path.partition("{")[0], method.upper())
        for path, operations in DESCRIPTION["paths"].items()
        for method in operations
    }
    served = {(path, each.method.decode()) for path, each in gateway.app._endpoints.items()}
    assert described == served
    answer = await gateway.http.get("/openapi.json")
    assert answer.json() == DESCRIPTION
    for path, operation in DESCRIPTION["paths"].items():
        for method, about in operation.items():
            answer = await gateway.http.request(method, path.replace("{model}", "x"))
            assert (answer.status_code == 401) is ("security" not in about), path
