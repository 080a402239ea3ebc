"""What a call that fails means for the exit code, and the sentence that goes with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner, Result

from meta_agent.cli import app


class _Answer(BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET  # noqa: N815  # the name that http.server calls

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def _run(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments), env={"META_AGENT_KEY": None, "META_AGENT_URL": None})
    assert "Traceback" not in done.output
    return done


def test_a_control_plane_that_is_down_exits_with_5_and_says_how_to_start_it(nobody: str) -> None:
    done = _run("--url", nobody, "--key", "k", "scan")
    assert done.exit_code == 5
    assert "meta-agent up" in done.stderr
    assert done.stdout == ""


def test_with_json_a_failure_is_json_too(nobody: str) -> None:
    done = _run("--url", nobody, "--key", "k", "--json", "rollout", "list")
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"
    assert json.loads(done.stdout)["error"]["exit_code"] == 5


@pytest.mark.parametrize("url", ["http://[broken", "not-an-address", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_no_traceback(url: str) -> None:
    assert _run("--url", url, "--key", "k", "scan").exit_code == 2


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (500, {"error": {"message": "Broken.", "code": "internal_error"}}, 1),
        (503, {"error": {"message": "The database does not answer.", "code": "database_unavailable"}}, 1),
        (401, {"error": {"message": "The key is unknown.", "code": "invalid_api_key"}}, 2),
        (403, {"error": {"message": "This needs the role operator.", "code": "role_required"}}, 3),
        (404, {"error": {"message": "There is no such thing.", "code": "not_found"}}, 2),
        (409, {"error": {"message": "Moved.", "code": "state_moved"}}, 1),
        (409, {"error": {"message": "The proposer cannot approve.", "code": "approval_refused"}}, 3),
        (422, {"error": {"message": "tool: wrong", "code": "invalid_request"}}, 2),
    ],
)
def test_refusals_have_their_exit_codes(server: str, status: int, body: object, code: int) -> None:
    _Answer.status, _Answer.body = status, json.dumps(body).encode()
    done = _run("--url", server, "--key", "k", "scan", "--no-wait")
    assert done.exit_code == code
    assert body["error"]["message"] in done.stderr  # type: ignore[index]  # every case is such an object


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b"nginx"), (502, b""), (500, b"[]")])
def test_a_stranger_on_the_port_is_recognised(server: str, status: int, body: bytes) -> None:
    _Answer.status, _Answer.body = status, body
    done = _run("--url", server, "--key", "k", "agent", "status")
    assert done.exit_code == 5
    assert "not the control plane" in done.stderr


def test_without_a_key_the_sentence_says_where_to_get_one(tmp_path: Path) -> None:
    config = tmp_path / "meta-agent.yaml"
    config.write_text(f"home: {tmp_path}/home\n")
    done = _run("--config", str(config), "scan")
    assert done.exit_code == 2
    assert "operator.key" in done.stderr


def test_a_key_that_cannot_be_one_is_a_usage_error() -> None:
    assert _run("--url", "http://127.0.0.1:1", "--key", "schlüssel", "scan").exit_code == 2
