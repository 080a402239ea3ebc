"""The example application, run as its users run it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "examples/story_teller/story_teller.py"


def command(url: str, *arguments: str) -> list[str]:
    where = ["--gateway", f"{url}/v1", "--key", "k", "--model", "budget-nano", "--seed", "1"]
    return [sys.executable, str(PROGRAM), *where, *arguments]


def test_one_story_is_told_nicely(bargain: Any) -> None:
    ended = subprocess.run(command(bargain.url, "--once"), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, ended.stderr
    wish, story = ended.stdout.strip().split("\n\n")
    assert wish.startswith("> Tell a story about a ")
    assert story.endswith("The end.")


def test_readers_read_on_through_every_fault_and_stop_when_told(bargain: Any) -> None:
    bargain.behave(error_rate=0.1, half_stream_rate=0.2, invalid_json_rate=0.2, rate_limit_rate=0.1)
    before = bargain.stats()
    with subprocess.Popen(
        command(bargain.url, "--rps", "100"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 15
        while bargain.stats()["answered"] - before["answered"] < 60 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate(timeout=10)
    assert process.returncode == 0, complained
    assert "Traceback" not in complained
    line = said.strip().splitlines()[-1]
    found = re.search(r"requests (\d+)  errors (\d+) .*wish met (\d+) %", line)
    assert found, line
    assert int(found[1]) >= 40
    assert int(found[2]) >= 5
    assert found[3] == "100"
    after = bargain.stats()
    assert all(after[kind] > before[kind] for kind in ("error", "half_stream", "invalid_json", "streamed"))
