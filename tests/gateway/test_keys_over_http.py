"""Keys as their holders meet them: what they may, how long they last, and what they are shown."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

from storage import identities
from storage.clock import now
from tests.gateway.conftest import USE_CASE, Fleet, Running, until
from tests.gateway.stories import BODY, COST, arrived, key_of, rows_of


async def status_of(gateway: Running, token: str) -> int:
    return (await gateway.post(BODY, token)).status_code


async def test_who_answered_is_shown_to_those_who_may_see_it(gateway: Running, fleet: Fleet) -> None:
    blind = await key_of(gateway, fleet, "blind", "infer")
    for streamed in (False, True):
        body = {**BODY, "stream": streamed}
        shown, hidden = await gateway.post(body), await gateway.post(body, blind)
        ours = {name for name in shown.headers if name.startswith("x-meta-agent-")}
        always = {f"x-meta-agent-{name}" for name in ("release", "deployment", "variant", "overhead-ms")}
        assert ours == always | (set() if streamed else {"x-meta-agent-cost-usd"})
        assert not any(name.startswith("x-meta-agent-") for name in hidden.headers)
        assert "x-meta-agent" not in hidden.text
        assert hidden.headers["x-request-id"].startswith("int_")
        if streamed:
            comments = [line for line in shown.text.splitlines() if line.startswith(":")]
            (comment,) = comments
            assert Decimal(comment.removeprefix(": x-meta-agent-cost-usd=")) == Decimal(str(COST))
            assert shown.text.rstrip().endswith("data: [DONE]")
    refused = await gateway.post({**BODY, "model": f"{USE_CASE}@rel_none"}, blind)
    assert not any(name.startswith("x-meta-agent-") for name in refused.headers)


async def test_both_headers_for_keys_are_taken(gateway: Running) -> None:
    for headers, status in (
        ({"x-api-key": gateway.token}, 200),
        ({"authorization": f"bearer {gateway.token}"}, 200),
        ({"x-api-key": gateway.token[:-1] + "x"}, 401),
        ({"authorization": f"Bearer {gateway.token[:-1]}x", "x-api-key": gateway.token}, 401),
    ):
        for path, body in (
            ("/v1/chat/completions", BODY),
            ("/v1/messages", {**BODY, "max_tokens": 5}),
            ("/v1/responses", {"model": USE_CASE, "input": "tell me"}),
        ):
            response = await gateway.http.post(path, json=body, headers=headers)
            assert response.status_code == status, (path, headers)
    error = (await gateway.http.post("/v1/messages", json={})).json()
    assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")


#: Scopes, what is asked for, and whether it is given.
SCOPES: list[tuple[tuple[str, ...], str, int]] = [
    (("infer",), "chat", 200),
    (("infer",), "pinned chat", 403),
    (("infer",), "route", 403),
    (("infer", "pin"), "pinned chat", 200),
    (("route",), "chat", 403),
    (("route",), "route", 200),
    (("route",), "pinned route", 403),
    (("route", "pin"), "pinned route", 200),
    ((), "chat", 403),
]


async def test_a_key_may_do_what_its_scopes_say(gateway: Running, fleet: Fleet) -> None:
    release = await fleet.release("say:pinned")
    await gateway.serves(await fleet.route(release))
    for number, (scopes, asked, status) in enumerate(SCOPES):
        token = await key_of(gateway, fleet, f"k{number}", *scopes)
        model = f"{USE_CASE}@{release}" if asked.startswith("pinned") else USE_CASE
        path = "/v1/route" if asked.endswith("route") else "/v1/chat/completions"
        headers = {"authorization": f"Bearer {token}"}
        response = await gateway.http.post(path, json={**BODY, "model": model}, headers=headers)
        assert response.status_code == status, (scopes, asked)
        if status == 403:
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("permission_error", "missing_scope")
    kinds = {}
    for scopes in (("infer", "pin"), ("infer", "pin", "evaluate")):
        token = await key_of(gateway, fleet, f"e{len(scopes)}", *scopes)
        headers = {"x-meta-agent-purpose": "evaluation"}
        answer = await gateway.post({**BODY, "model": f"{USE_CASE}@{release}"}, token, headers=headers)
        (row,) = await rows_of(fleet, 1, f"id = '{answer.headers['x-request-id']}'")
        kinds[scopes] = row["kind"]
    assert kinds == {("infer", "pin"): "live", ("infer", "pin", "evaluate"): "evaluation"}


async def test_a_key_ends_when_it_expires_and_may_be_prolonged(gateway: Running, fleet: Fleet) -> None:
    token = await key_of(gateway, fleet, "brief", "infer", expires_at=now() + timedelta(seconds=0.8))
    assert await status_of(gateway, token) == 200

    async def refused() -> bool:
        return await status_of(gateway, token) == 401

    await until(refused, 3)
    async with fleet.db.transaction() as connection:
        assert await identities.change_key(connection, "brief", {"expires_at": now() + timedelta(hours=1)})

    async def well_again() -> bool:
        return await status_of(gateway, token) == 200

    await until(well_again, 2)


async def test_a_secret_is_rotated_while_calls_go_on(gateway: Running, fleet: Fleet) -> None:
    old = await key_of(gateway, fleet, "rotating", "infer")
    async with fleet.db.transaction() as connection:
        new = await identities.rotate_key(connection, "rotating", grace=timedelta(seconds=1.2))
    rotated = asyncio.get_running_loop().time()
    assert await status_of(gateway, old) == 200

    async def taken() -> bool:
        return await status_of(gateway, new) == 200

    await until(taken, 1)
    assert await status_of(gateway, old) == 200, "within the grace both are taken"

    async def refused() -> bool:
        return await status_of(gateway, old) == 401

    await until(refused, 4)
    assert asyncio.get_running_loop().time() - rotated > 1
    assert await status_of(gateway, new) == 200


async def test_a_revoked_key_is_refused_within_a_second(gateway: Running, fleet: Fleet) -> None:
    token = await key_of(gateway, fleet, "thief", "infer")
    assert await status_of(gateway, token) == 200
    async with fleet.db.transaction() as connection:
        await identities.revoke_key(connection, "thief")
    revoked = asyncio.get_running_loop().time()

    async def refused() -> bool:
        return await status_of(gateway, token) == 401

    await until(refused, 3)
    assert asyncio.get_running_loop().time() - revoked < 1


async def test_a_key_is_for_its_use_cases_alone_and_that_may_change(gateway: Running, fleet: Fleet) -> None:
    token = await key_of(gateway, fleet, "narrow", "infer", use_cases=["essay-writer"])
    assert await status_of(gateway, token) == 404
    async with fleet.db.transaction() as connection:
        await identities.change_key(connection, "narrow", {"use_cases": [USE_CASE]})
    await arrived(gateway, lambda known: known.keys["narrow"].use_cases == frozenset({USE_CASE}), seconds=1)
    assert await status_of(gateway, token) == 200
