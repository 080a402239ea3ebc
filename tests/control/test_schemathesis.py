"""Requests made up from the control API's own description, good ones and bad ones: none may break it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.control.seeding import Seeded, key

CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance)
PROPERTY = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
#: Answers without end have no place in a test that waits for them.
ENDLESS = frozenset({"/api/v1/events"})


@contextlib.asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The app on a socket of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


def attack(document: dict[str, Any], base_url: str, mode: GenerationMode) -> tuple[int, set[str]]:
    """Try every operation from a thread; how many requests got through, and the failures."""
    headers = {"authorization": f"Bearer {key('admin')}"}
    welcome, failures = 0, set[str]()

    def try_out(operation: Any) -> None:
        @PROPERTY
        @given(operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            nonlocal welcome
            response = case.call(base_url=base_url, headers=headers, timeout=20)
            welcome += response.status_code < 300
            case.validate_response(response, checks=CHECKS)

        one()

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        if operation.path in ENDLESS:
            continue
        try:
            try_out(operation)
        except Exception as error:  # all of them, rather than the first one
            failures.add(f"{operation.label}: {error}")
    return welcome, failures


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/use-cases/a%00b", None),
        ("GET", "/api/v1/interactions?use_case=%00", None),
        ("GET", "/api/v1/audit?before=9999999999999999999999", None),
        ("GET", "/api/v1/audit?subject=%ff%fe%00", None),
        ("GET", "/api/v1/offering-changes?after=9223372036854775808", None),
        ("POST", "/api/v1/keys", {"name": "a\x00b", "scopes": ["infer"]}),
        ("POST", "/api/v1/keys", {"name": "x", "scopes": ["infer"], "use_cases": ["\x00"]}),
        ("POST", "/api/v1/keys", {"name": "x", "scopes": ["infer"], "acts_as": "\x00"}),
        (
            "POST",
            "/api/v1/keys",
            {"name": "x", "scopes": ["infer"], "expires_at": "0001-01-01T00:00:00+23:59"},
        ),
        (
            "POST",
            "/api/v1/keys",
            {"name": "x", "scopes": ["infer"], "expires_at": "9999-12-31T23:59:59-23:59"},
        ),
        (
            "POST",
            "/api/v1/keys",
            {"name": "x", "scopes": ["infer"], "limits": {"requests_per_minute": 10**30}},
        ),
        ("POST", "/api/v1/proposals", {"tool": "\x00", "arguments": {"\x00": "\x00"}, "reason": "\x00"}),
        ("POST", "/api/v1/proposals", {"tool": "rank", "arguments": {"use_case": "\x00"}}),
        ("POST", "/api/v1/approvals", {"proposal_id": "\x00", "word": "approve", "binding_digest": "\x00"}),
        ("POST", "/api/v1/privacy/erasures", {"user": "\x00"}),
        ("PATCH", "/api/v1/keys/%00", {"name": "x"}),
        ("DELETE", "/api/v1/keys/%00", None),
    ],
)
async def test_what_cannot_be_stored_is_the_callers_fault(
    app: FastAPI, seeded: Seeded, method: str, path: str, body: Any
) -> None:
    async with listening(app) as base_url, httpx.AsyncClient(base_url=base_url) as client:
        headers = {"authorization": f"Bearer {key('admin')}"}
        answer = await client.request(method, path, json=body, headers=headers)
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
async def test_no_request_breaks_the_api(app: FastAPI, seeded: Seeded, mode: GenerationMode) -> None:
    async with listening(app) as base_url, httpx.AsyncClient(base_url=base_url) as client:
        answer = await client.get("/api/v1/openapi.json", headers={"authorization": f"Bearer {key('admin')}"})
        welcome, failures = await asyncio.to_thread(attack, answer.json(), base_url, mode)
    assert not failures, "\n\n".join(sorted(failures))
    assert welcome
