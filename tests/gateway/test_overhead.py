"""The overhead is a fraction of a millisecond: a clock of whole ones, as uvloop has, makes nothing of it."""

from __future__ import annotations

from typing import Any

from tests.gateway.conftest import USE_CASE, Fleet, Running, until


async def test_the_overhead_is_measured_in_finer_steps(gateway: Running, fleet: Fleet) -> None:
    for _ in range(20):
        body = {"model": USE_CASE, "messages": [{"role": "user", "content": "tell me of the sea"}]}
        assert (await gateway.post(body)).status_code == 200

    async def logged() -> list[dict[str, Any]]:
        rows = await fleet.rows()
        return rows if len(rows) == 20 else []

    rows = await until(logged)
    assert all(0 < row["overhead_ms"] <= row["latency_ms"] for row in rows)
