"""A running installation for whoever asks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.installation import Installation, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One whole installation at a time: two of them, each with its traffic, would wait for each other."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("scenarios"))


@pytest.fixture
def installation() -> Iterator[Installation]:
    """Everything up, in a home with a short path: the embedded server's socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="ma-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory)) as started:
            yield started
