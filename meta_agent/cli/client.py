"""The control plane's API as the command line sees it: JSON back, or a :class:`Failure` with a sentence.

Knows addresses, keys and what a failed call means for the exit code; nothing of any command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httpx

from meta_agent.cli.failures import LOOPBACK, Exit, Failure, usage

_TIMEOUT = httpx.Timeout(30.0, connect=3.0)
#: What a refusal of the API means to a script. Whatever else a 4xx says, the command was asked wrongly.
_EXITS = {403: Exit.REFUSED, 409: Exit.FAILED, 429: Exit.FAILED}
_CODES = {"approval_refused": Exit.REFUSED}

Json = dict[str, Any]


class Client:
    """Calls ``/api/v1`` of one control plane with one key."""

    def __init__(self, base_url: str, key: str) -> None:
        """``key`` is sent as a bearer token."""
        if not key.isascii() or not key.isprintable():
            raise usage("The key holds characters that no key has; copy it again from where it was created.")
        self.base_url = base_url.rstrip("/")
        try:
            parts = urlsplit(self.base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("it must begin with http:// or https:// and name a host")
            self._http = httpx.Client(
                base_url=f"{self.base_url}/api/v1/",
                headers={"authorization": f"Bearer {key}"},
                timeout=_TIMEOUT,
                # A proxy of the surroundings has no part in a call that stays on this machine.
                trust_env=parts.hostname not in LOOPBACK,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise usage(f"{base_url} is no address of a control plane: {error}.") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **query: object) -> Json:
        """One thing."""
        return cast("Json", self._call("GET", path, query=query))

    def find(self, path: str, **query: object) -> Json | None:
        """One thing, or None if there is none."""
        try:
            return self.get(path, **query)
        except Failure as failure:
            if failure.code in ("not_found", "not_ranked"):
                return None
            raise

    def list(self, path: str, **query: object) -> list[Json]:
        """Many things."""
        answer = self._call("GET", path, query=query)
        if not isinstance(answer, list):
            raise self._stranger()
        return answer

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Ask for a change."""
        return cast("Json", self._call("POST", path, body=body or {}))

    def patch(self, path: str, body: Mapping[str, Any]) -> Json:
        """Change what is there."""
        return cast("Json", self._call("PATCH", path, body=body))

    def delete(self, path: str) -> None:
        """Take something away."""
        self._call("DELETE", path)

    def _call(
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, body: object = None
    ) -> Any:
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._http.request(method, path, params=cast("Any", asked), json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if answer.is_success and answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            document = answer.json()
        except ValueError:
            raise self._stranger() from None
        if answer.is_success:
            return document
        raise self._refused(answer.status_code, document)

    def _unreachable(self, error: httpx.HTTPError) -> Failure:
        why = str(error) or type(error).__name__
        return Failure(
            f"The control plane at {self.base_url} does not answer ({why}). Start it with 'meta-agent up', "
            f"or with 'meta-agent control' alone; if it runs elsewhere, give --url or META_AGENT_URL.",
            Exit.UNREACHABLE,
            "unreachable",
        )

    def _stranger(self) -> Failure:
        return Failure(
            f"What answers at {self.base_url} is not the control plane of Meta Agent. Check control.port in "
            f"the configuration, or --url.",
            Exit.UNREACHABLE,
            "not_the_control_plane",
        )

    def _refused(self, status: int, document: object) -> Failure:
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(error, dict):
            return self._stranger()
        code, message = str(error.get("code", "")), str(error.get("message", "")) or "The call was refused."
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return Failure(f"The control plane failed: {message}", Exit.FAILED, code)
        if status == httpx.codes.UNAUTHORIZED:
            message += " Give one that is valid with --key or META_AGENT_KEY."
        return Failure(message, _CODES.get(code, _EXITS.get(status, Exit.USAGE)), code)


def segment(name: str) -> str:
    """A name as one segment of a path, whatever it holds."""
    # A bare dot or two would climb in the path, and are no name of anything.
    return quote(name, safe="") if name.strip(".") else "-"


def read_key(given: str | None, home: Path) -> str:
    """The key to call with: the one given, else the installation's own."""
    if given and given.strip():
        return given.strip()
    path = home / "keys" / "operator.key"
    try:
        return path.read_text().strip()
    except OSError:
        raise usage(
            f"There is no key to call the control plane with. 'meta-agent up' writes one to {path}; from "
            f"another machine give yours with --key or META_AGENT_KEY."
        ) from None
