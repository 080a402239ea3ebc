"""What the gateway is told at start: plain objects, read by whoever starts it.

Knows no file and no environment variable. Secrets never show in a repr or a log line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """How one provider is reached. Every kind listed in ``gateway.providers`` may be named."""

    name: str
    kind: str  #: openai, openai_compatible, openrouter, vllm, ollama, anthropic, litellm, ...
    base_url: str = ""  #: with the version path, such as ``https://api.openai.com/v1``; litellm knows its own
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  #: sent along with every call
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)  #: for the translator's library alone
    ca_file: str | None = None  #: certificate authorities of a private server; absent: the system's
    connect_seconds: float = 2.0
    answer_seconds: float = 120.0  #: a whole plain answer
    first_token_seconds: float = 30.0  #: from the request to the first event of a stream
    idle_seconds: float = 20.0  #: between two pieces of a stream
    max_connections: int = 512
    max_answer_bytes: int = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """Where traces and metrics are exported to, by OTLP over HTTP."""

    endpoint: str  #: of the collector, without ``/v1/traces``
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    service: str = "meta-agent-gateway"
    timeout_seconds: float = 5.0
    metrics_seconds: float = 15.0  #: between two exports of the histograms


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything one gateway process needs to know."""

    gateway_id: str  #: its name in route acknowledgements; stable over restarts
    spool_dir: Path  #: this process's own: the journal and the last good routes
    providers: Mapping[str, ProviderConfig]
    database_url: str = field(default="", repr=False)  #: for ``serve``
    host: str = "127.0.0.1"
    port: int = 8080
    route_poll_seconds: float = 1.0
    max_body_bytes: int = 16 * 1024 * 1024
    flush_seconds: float = 0.25  #: how long a finished interaction may wait before it is shipped
    flush_rows: int = 500  #: or how many of them
    shadow_concurrency: int = 8  #: mirrored calls in flight; more are dropped and counted
    drain_seconds: int = 120  #: how long open streams may finish when the process is told to stop
    telemetry: TelemetryConfig | None = None  #: None: nothing is exported
    #: Makes pseudonyms of user names; the same in all gateways. Absent: nobody is followed beyond a restart.
    pseudonym_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    log_format: str = "text"  #: or json; of the sidecar's lines, which appear among this process's own
    shared_port: bool = False  #: whether other gateways of this machine listen on the same port

    @property
    def traces(self) -> bool:
        """Whether calls that come without a trace begin one."""
        return self.telemetry is not None
