"""Embeddings asked of a use case whose model makes none."""

from __future__ import annotations

from tests.gateway.conftest import USE_CASE, Fleet, Running, until


async def test_a_chat_model_asked_for_embeddings_is_the_callers_mistake(
    gateway: Running, fleet: Fleet
) -> None:
    await gateway.serves(await fleet.route(await fleet.release("status:404"), rollout_id="ro_1"))
    headers = {"authorization": f"Bearer {gateway.token}"}
    for _ in range(6):
        response = await gateway.http.post(
            "/v1/embeddings", json={"model": USE_CASE, "input": "sea"}, headers=headers
        )
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "embeddings_unsupported"

    async def logged() -> list[str]:
        rows = await fleet.rows()
        return [row["status"] for row in rows] if len(rows) == 6 else []

    assert await until(logged) == ["rejected"] * 6, "no arm is charged with it"
    chat = await gateway.post({"model": USE_CASE, "messages": [{"role": "user", "content": "tell"}]})
    assert chat.json()["error"]["code"] == "upstream_status_404", "and its breaker let the call through"
