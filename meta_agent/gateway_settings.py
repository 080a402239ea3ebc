"""The gateway's part of the settings: where it listens, where it exports to, which providers it calls.

How each use case is served is said in :mod:`meta_agent.serving_settings`. Secrets do not show in a dump.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Secret, SecretStr, field_validator

from meta_agent.section import Section

ProviderKind = Literal[
    "openai",
    "anthropic",
    "google",
    "openrouter",
    "ollama",
    "vllm",
    "transformers",
    "llamacpp",
    "openai_compatible",
    "litellm",
]

#: Where kinds live when no base_url is given.
DEFAULT_BASE_URLS = {
    "openai": "https://api.openai.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "ollama": "http://127.0.0.1:11434/v1",
    "vllm": "http://127.0.0.1:8000/v1",
    "llamacpp": "http://127.0.0.1:8080/v1",
    "transformers": "http://127.0.0.1:8000/v1",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
}
#: Kinds that are reached through litellm, which knows by itself where they live.
TRANSLATED_KINDS = frozenset({"anthropic", "litellm"})

_NAME_CHARACTERS = frozenset("!#$%&'*+-.^_`|~")  # besides letters and digits, as RFC 9110 has it


def _http_url(url: str) -> str:
    # Without the URL itself: it may hold a password.
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise ValueError("write http://host:port/path or https://host/path")
    return url


def _header_name(name: str) -> str:
    if not name or not all(each.isascii() and (each.isalnum() or each in _NAME_CHARACTERS) for each in name):
        raise ValueError("the name of a header holds letters, digits and hyphens")
    return name


def _header_value(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("the value of a header is one line of ASCII")
    return value


def _from_json(value: object) -> object:
    """A mapping as a variable of the environment holds it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("a mapping is written as JSON in the environment") from None


HttpUrl = Annotated[str, AfterValidator(_http_url)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Headers = Annotated[Secret[dict[HeaderName, HeaderValue]], BeforeValidator(_from_json)]


class ProviderSettings(Section):
    """One provider that the gateway may call and the scan may list."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: ProviderKind
    base_url: HttpUrl | None = None
    api_key: SecretStr | None = None
    headers: Headers = Field(Secret({}), description="sent along with every call of the gateway")
    extra: Secret[dict[str, Any]] = Field(
        Secret({}), description="for litellm, such as aws_region_name; kinds anthropic and litellm only"
    )
    ca_file: Path | None = Field(None, description="authorities of a private server, relative to this file")
    connect_timeout_seconds: float | None = Field(None, gt=0, description="absent: the gateway's")
    first_byte_timeout_seconds: float | None = Field(None, gt=0, description="absent: the gateway's")
    idle_timeout_seconds: float | None = Field(None, gt=0, description="absent: the gateway's")
    total_timeout_seconds: float | None = Field(None, gt=0, description="absent: the gateway's")
    max_connections: int = Field(512, ge=1, le=65535)

    @property
    def url(self) -> str:
        """The base URL, of the kind if none is given; empty where litellm knows it."""
        return (self.base_url or DEFAULT_BASE_URLS.get(self.kind, "")).rstrip("/")


class TelemetrySettings(Section):
    """Where traces and metrics are exported to, by OTLP over HTTP."""

    endpoint: HttpUrl = Field(description="of the collector, without /v1/traces")
    headers: Headers = Secret({})
    service: str = Field("meta-agent-gateway", min_length=1)
    timeout_seconds: float = Field(5.0, gt=0)
    metrics_seconds: float = Field(15.0, gt=0, description="between two exports of the metrics")

    @field_validator("endpoint")
    @classmethod
    def _has_no_signal(cls, endpoint: str) -> str:
        if endpoint.rstrip("/").endswith(("/v1/traces", "/v1/metrics")):
            raise ValueError("write the collector's address without /v1/traces; the paths are added to it")
        return endpoint.rstrip("/")


class GatewaySettings(Section):
    """The data plane."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=1, le=65535)
    url: HttpUrl | None = Field(None, description="how others reach it; absent: host and port")
    workers: int = Field(1, ge=1, le=256, description="whole gateways that share the port")
    max_body_bytes: int = Field(10_000_000, ge=1024)
    connect_timeout_seconds: float = Field(2.0, gt=0)
    first_byte_timeout_seconds: float = Field(30.0, gt=0)
    idle_timeout_seconds: float = Field(20.0, gt=0)
    total_timeout_seconds: float = Field(120.0, gt=0, description="of an answer that is not streamed")
    drain_seconds: int = Field(120, ge=0, description="how long open streams may finish at a stop")
    telemetry: TelemetrySettings | None = Field(None, description="absent: nothing is exported")

    @property
    def base_url(self) -> str:
        """Where the gateway is reached, without /v1."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")
