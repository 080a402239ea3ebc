"""Bad requests and bad providers: the client gets an error it can act on, the log keeps what happened."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.conftest import USE_CASE, Fleet, Running, until
from tests.gateway.fake_upstream import FakeUpstream

MESSAGES: Any = [{"role": "user", "content": "tell me of the sea"}]
BODY: Any = {"model": USE_CASE, "messages": MESSAGES}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{nonsense", 400, None, "invalid_json"),
        (b"", 400, None, "invalid_json"),
        (b"[1]", 400, None, "invalid_type"),
        (b'{"messages": []}', 400, "model", "missing_field"),
        (b'{"model": 7}', 400, "model", "invalid_type"),
        (b'{"model": "story-teller"}', 400, "messages", "invalid_type"),
        (b'{"model": "story-teller", "messages": [7]}', 400, "messages[0]", "invalid_type"),
        (b'{"model": "story-teller", "messages": [{"role": "user"}], "stream": "yes"}', 400, "stream", None),
        (b'{"model": "story-teller", "messages": [{"role": "user"}], "user": 5}', 400, "user", None),
        (
            b'{"model": "story-teller", "messages": [{"role": "user"}], "metadata": {"conversation_id": 1}}',
            400,
            "metadata.conversation_id",
            None,
        ),
        (b'{"model": "gpt-4", "messages": [{"role": "user"}]}', 404, "model", "model_not_found"),
        (b'{"model": "x", "messages": [{"content": "' + b"x" * 200_000, 413, None, "request_too_large"),
    ],
)
async def test_bad_bodies(
    gateway: Running, body: bytes, status: int, param: str | None, code: str | None
) -> None:
    response = await gateway.post(content=body)
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert response.headers["x-request-id"].startswith("int_")


async def test_a_body_in_chunks_is_limited_too(gateway: Running) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 10_000

    response = await gateway.post(content=endless())
    assert response.status_code == 413


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer nonsense",
        "Bearer ma_live_app_wrong",
        "Bearer ma_live_nobody_" + "0" * 48,
        "Basic x",
    ],
)
async def test_bad_keys(gateway: Running, fleet: Fleet, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/v1/feedback")):
        response = await gateway.http.request(method, path, headers=headers)
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
    assert await fleet.rows() == []


async def test_wrong_paths_and_methods(gateway: Running) -> None:
    assert (await gateway.http.post("/v1/images")).status_code == 404
    response = await gateway.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "POST" in error_of(response)["message"]


async def test_refusals_of_a_known_key_and_use_case_are_logged(gateway: Running, fleet: Fleet) -> None:
    await gateway.post({"model": USE_CASE, "messages": "none"})
    row = await fleet.one_row()
    assert (row["status"], row["http_status"], row["arm"], row["cost_usd"]) == ("rejected", 400, None, None)
    assert row["key_id"] == "app"


async def test_a_key_sees_only_its_use_cases(gateway: Running, fleet: Fleet) -> None:
    token = await fleet.key("other", use_cases=["essay-writer"])
    await gateway.serves(await fleet.route(await fleet.release("say:x")))
    with pytest.raises(openai.NotFoundError, match="no use case that this key may call"):
        await gateway.client(token).chat.completions.create(**BODY)


FAILURES = [
    ("hangup", 502, "upstream_hung_up"),
    ("hang", 504, "upstream_timeout"),
    ("html", 502, "upstream_invalid_answer"),
    ("error200", 502, "upstream_invalid_answer"),
    ("gzip", 502, "upstream_invalid_answer"),
    ("status:400", 400, "upstream_refused"),
    ("status:401", 502, "upstream_credentials"),
    ("status:404", 502, "upstream_status_404"),
    ("status:429", 429, "upstream_rate_limited"),
    ("status:500", 502, "upstream_status_500"),
    ("status:503", 502, "upstream_status_503"),
    ("status:504", 504, "upstream_timeout"),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("model", "status", "code"), FAILURES)
async def test_a_failing_provider(
    gateway: Running, fleet: Fleet, model: str, status: int, code: str, streamed: bool
) -> None:
    await gateway.serves(await fleet.route(await fleet.release(model)))
    response = await gateway.post({**BODY, "stream": streamed})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    if status == 429:
        assert response.headers["retry-after"] == "7"
    if status == 400:
        assert "upstream says 400" in error_of(response)["message"]
    row = await fleet.one_row()
    assert (row["status"], row["http_status"], row["arm"]) == ("error", status, "stable")
    assert row["id"] == response.headers["x-request-id"]
    assert row["error_type"].startswith(("upstream_", "provider_"))
    assert row["error_message"]


async def test_a_provider_that_is_down_and_one_that_is_not_configured(gateway: Running, fleet: Fleet) -> None:
    await gateway.serves(await fleet.route(await fleet.release("echo", provider="gone")))
    response = await gateway.post(BODY)
    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_unreachable")
    await gateway.serves(await fleet.route(await fleet.release("echo", provider="nobody")))
    response = await gateway.post(BODY)
    assert (response.status_code, error_of(response)["code"]) == (502, "provider_not_configured")


async def test_stable_is_asked_again_when_nobody_answered_the_door(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream
) -> None:
    await gateway.serves(await fleet.route(await fleet.release("flaky")))
    response = await gateway.post(BODY)
    assert response.status_code == 200
    assert len(upstream.requests) == 2
    assert (await fleet.one_row())["status"] == "ok"


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("model", ["status:500", "hangup", "html", "hang"])
async def test_stable_answers_for_a_candidate_that_fails(
    gateway: Running, fleet: Fleet, model: str, streamed: bool
) -> None:
    stable, candidate = await fleet.release("say:stable"), await fleet.release(model)
    await gateway.serves(await fleet.route(stable, (candidate, 1.0), rollout_id="ro_1"))
    response = await gateway.post({**BODY, "stream": streamed, "metadata": {"conversation_id": "c1"}})
    assert response.status_code == 200
    assert "stable" in response.text
    assert response.headers["x-meta-agent-variant"] == "stable"
    answered = await fleet.one_row("arm = 'stable'")
    failed = await fleet.one_row("arm = 'candidate'")
    assert (failed["status"], answered["status"]) == ("error", "ok")
    assert answered["fallback_of"] == failed["id"]
    assert answered["id"] == response.headers["x-request-id"]
    for row in (answered, failed):
        assert (row["unit"], row["weight"], row["rollout_id"]) == ("c1", 1.0, "ro_1")
    assert answered["overhead_ms"] < 500, "the candidate's time is no overhead of ours"


async def test_both_arms_down(gateway: Running, fleet: Fleet) -> None:
    stable, candidate = await fleet.release("status:500"), await fleet.release("hangup")
    await gateway.serves(await fleet.route(stable, (candidate, 1.0)))
    assert (await gateway.post(BODY)).status_code == 502
    assert [row["status"] for row in await until(lambda: _two(fleet))] == ["error", "error"]


async def _two(fleet: Fleet) -> list[dict[str, Any]]:
    rows = await fleet.rows()
    return rows if len(rows) == 2 else []


@pytest.mark.parametrize("model", ["half", "midstream-error", "mute"])
async def test_half_a_stream_ends_with_an_error_and_is_never_restarted(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream, model: str
) -> None:
    stable, candidate = await fleet.release("say:stable"), await fleet.release(model)
    await gateway.serves(await fleet.route(stable, (candidate, 1.0)))
    stream = await gateway.client().chat.completions.create(**BODY, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "tell "
    with pytest.raises(openai.APIError, match="story-teller"):
        await _exhaust(stream)
    assert len(upstream.requests) == 1
    row = await fleet.one_row()
    assert (row["status"], row["arm"], row["http_status"]) == (
        "error",
        "candidate",
        502 if model != "mute" else 504,
    )
    assert row["response_text"].startswith("tell ")
    response = await gateway.post({**BODY, "stream": True})
    assert response.text.endswith("data: [DONE]\n\n")


async def _exhaust(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_body_that_ends_with_the_connection(gateway: Running, fleet: Fleet) -> None:
    await gateway.serves(await fleet.route(await fleet.release("until-close")))
    for _ in range(3):
        assert (await gateway.post(BODY)).status_code == 200


async def test_connections_are_kept(gateway: Running, upstream: FakeUpstream) -> None:
    for streamed in (False, True) * 10:
        assert (await gateway.post({**BODY, "stream": streamed})).status_code == 200
    assert upstream.connections == 1


@pytest.mark.parametrize(("model", "streamed"), [("hang", False), ("hang", True), ("gated", True)])
async def test_a_client_that_leaves_stops_the_provider(
    gateway: Running, fleet: Fleet, upstream: FakeUpstream, model: str, streamed: bool
) -> None:
    await gateway.serves(await fleet.route(await fleet.release(model)))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1]))
    body = json.dumps({**BODY, "stream": streamed}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.token}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def asked() -> bool:
        return bool(upstream.requests)

    await until(asked)
    if model == "gated":
        assert b"tell" in await reader.readuntil(b"tell")
    writer.close()
    row = await fleet.one_row()
    assert (row["status"], row["arm"]) == ("cancelled", "stable")

    async def cut_off() -> bool:
        return upstream.cut_off == 1

    await until(cut_off)
    if model == "gated":
        assert row["response_text"] == "tell "


async def test_text_that_postgresql_cannot_hold(gateway: Running, fleet: Fleet) -> None:
    messages = [{"role": "user", "content": "nul \x00 and\nline"}]
    response = await gateway.post({"model": USE_CASE, "messages": messages})
    assert response.status_code == 200
    assert (await fleet.one_row())["status"] == "ok"
