"""The gateway of these tests stands before a provider that can do what real ones can."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.clients.able_upstream import AbleUpstream


@pytest.fixture
async def upstream() -> AsyncIterator[AbleUpstream]:
    async with AbleUpstream().running() as server:
        yield server  # type: ignore[misc]  # ``running`` says its own class
