"""What the worker tells the translator, on one line of its standard input, and the words between them.

Secrets travel this way only: an argument or an environment variable could be read by other processes.
Loads nothing; both sides import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

#: The request header that names the provider.
PROVIDER_HEADER = "x-meta-agent-provider"
#: The header of an error answer that tells what befell the call when the provider sent no error itself.
FAULT_HEADER = "x-meta-agent-fault"

UNREACHABLE = "unreachable"
TIMEOUT = "timeout"
BROKEN = "broken"
INVALID = "invalid"

READY = b"ready\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One provider, as the translator needs to know it."""

    name: str
    kind: str  #: anthropic or litellm
    base_url: str  #: empty: the library's own
    api_key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    extra: Mapping[str, Any] = field(repr=False)  #: arguments of the library, such as ``aws_region_name``
    ca_file: str | None
    connect_seconds: float
    read_seconds: float  #: a net under the worker's own limits, which are the ones that count
    max_answer_bytes: int

    def secrets(self) -> list[str]:
        """Every text that must not show anywhere, the longest first."""
        values = [self.api_key, *self.headers.values(), *_texts(self.extra)]
        return sorted({value for value in values if value and len(value) >= 8}, key=len, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Where to listen and whom to call."""

    socket: str
    upstreams: Sequence[Upstream]

    def encode(self) -> bytes:
        """As one line."""
        return orjson.dumps(asdict(self)) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Handover:
        """Back from the line."""
        payload = orjson.loads(line)
        return cls(
            socket=payload["socket"], upstreams=tuple(Upstream(**each) for each in payload["upstreams"])
        )


def redacted(text: str, secrets: Sequence[str]) -> str:
    """The text without the secrets in it."""
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    return text


def _texts(extra: Mapping[str, Any]) -> list[str]:
    """Texts of settings that may be secret; names of regions, versions and the like are not."""
    return [
        value
        for name, value in extra.items()
        if isinstance(value, str) and any(word in name for word in ("key", "secret", "token", "credential"))
    ]
