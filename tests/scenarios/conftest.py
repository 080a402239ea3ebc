"""A running installation for whoever asks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.installation import Installation, running


@pytest.fixture
def installation() -> Iterator[Installation]:
    """Everything up, in a home with a short path: the embedded server's socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="ma-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory)) as started:
            yield started
