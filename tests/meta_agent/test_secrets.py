"""Secret files: one secret however many processes ask first, and nobody else's eyes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meta_agent.secrets import derive, installation_secret, read_or_create, write_secret
from meta_agent.settings import ConfigurationError

RACER = """
import sys
from pathlib import Path
from meta_agent.secrets import installation_secret
print("ready", flush=True)
sys.stdin.readline()
print(installation_secret(Path(sys.argv[1])))
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_racing_processes_agree_on_one_secret(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:  # all of them wait at the line
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = {racer.communicate(timeout=20)[0].strip() for racer in racers}
    assert len(answers) == 1
    assert answers == {(tmp_path / "keys" / "installation-secret").read_text().strip()}
    assert len(answers.pop()) == 48
    assert [each.name for each in (tmp_path / "keys").iterdir()] == ["installation-secret"], "no partial file"


def test_modes(tmp_path: Path) -> None:
    read_or_create(tmp_path / "keys" / "a")
    write_secret(tmp_path / "keys" / "b", "value")
    assert mode(tmp_path / "keys") == 0o700
    assert mode(tmp_path / "keys" / "a") == mode(tmp_path / "keys" / "b") == 0o600


def test_what_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    path = tmp_path / "keys" / "a"
    path.write_text("the-secret-that-was-there\n")
    path.chmod(0o644)
    assert read_or_create(path) == "the-secret-that-was-there"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_exclusive_write_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "a"
    write_secret(path, "first", exclusive=True)
    with pytest.raises(FileExistsError):
        write_secret(path, "second", exclusive=True)
    write_secret(path, "third")
    assert path.read_text() == "third\n"
    assert list(path.parent.iterdir()) == [path]


def test_secret_that_could_be_guessed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys" / "installation-secret"
    write_secret(path, "")
    with pytest.raises(ConfigurationError, match="installation-secret is shorter than 16"):
        installation_secret(tmp_path)
    monkeypatch.setenv("META_AGENT_SECRET", "hunter2")
    with pytest.raises(ConfigurationError, match="META_AGENT_SECRET is shorter than 16") as caught:
        installation_secret(tmp_path)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("META_AGENT_SECRET", "one secret for several machines")
    assert installation_secret(tmp_path) == "one secret for several machines"


def test_derived_secrets_differ_by_purpose_and_secret() -> None:
    assert len({derive(secret, purpose) for secret in "ab" for purpose in ("x", "y")}) == 4
    assert derive("a", "x") == derive("a", "x")
