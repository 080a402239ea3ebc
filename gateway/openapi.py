"""The gateway's own description of its paths, for clients and for tests that generate requests."""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).with_name("openapi.json").read_bytes()
