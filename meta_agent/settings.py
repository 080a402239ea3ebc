"""Settings: one YAML file, and environment variables ``META_AGENT__SECTION__KEY`` above it.

Secrets are written as ``${NAME}`` and read from the environment, or as ``${file:/path}`` from a file.
An unknown key, or a secret that is not there, stops the start with the line and the fix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from storage.vocabulary import AssignmentUnit, Risk

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

_REFERENCE = re.compile(r"\$\{([^}]+)\}")


class ConfigurationError(Exception):
    """The configuration cannot be used; the message says where and how to mend it."""


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(Section):
    """Where PostgreSQL is."""

    url: SecretStr | None = Field(None, description="absent: an embedded server under META_AGENT_HOME")
    pool_size: int = Field(5, ge=1, le=100)


class ProviderSettings(Section):
    """One provider that the gateway may call and the scan may list."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: ProviderKind
    base_url: str | None = None
    api_key: SecretStr | None = None

    @property
    def url(self) -> str:
        """The base URL, of the kind if none is given."""
        return (self.base_url or DEFAULT_BASE_URLS.get(self.kind, "")).rstrip("/")


class StableSettings(Section):
    """What serves a use case before anything was decided about it."""

    provider: str
    model: str
    parameters: dict[str, Any] = {}
    system_prompt: str | None = None
    guard_profile: str = "default"


class UseCaseSettings(Section):
    """A named need of an application."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    risk: Risk = Risk.MEDIUM
    stable: StableSettings
    constraints: dict[str, Any] = {}
    budget_usd_per_month: float | None = Field(None, ge=0)
    assignment_unit: AssignmentUnit = AssignmentUnit.CONVERSATION
    suite: Path | None = Field(None, description="YAML file with evaluation cases, relative to this file")
    rollout: dict[str, Any] = Field({}, description="what differs from the default rollout plan")


class GatewaySettings(Section):
    """The data plane."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=1, le=65535)
    url: str | None = Field(None, description="how others reach it; absent: host and port")
    max_body_bytes: int = Field(10_000_000, ge=1024)
    connect_timeout_seconds: float = Field(2.0, gt=0)
    first_byte_timeout_seconds: float = Field(30.0, gt=0)
    idle_timeout_seconds: float = Field(20.0, gt=0)

    @property
    def base_url(self) -> str:
        """Where the gateway is reached, without /v1."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")


class ControlSettings(Section):
    """The control plane's server: API and console."""

    host: str = "127.0.0.1"
    port: int = Field(8081, ge=1, le=65535)
    secure_cookies: bool = Field(False, description="true wherever the console is served over HTTPS")
    session_hours: float = Field(12.0, gt=0)

    @property
    def base_url(self) -> str:
        """Where the console is reached."""
        return f"http://{self.host}:{self.port}"


class AgentSettings(Section):
    """The meta-management model and its loop."""

    planner: Literal["rules", "llm"] = "rules"
    model: str | None = Field(None, description="provider/model for the llm planner, e.g. openai/gpt-5-mini")
    interval_seconds: float = Field(300.0, gt=0)
    autonomy: Literal["observe", "propose", "act_with_approval", "act"] = "act_with_approval"
    scan_every_seconds: float = Field(3600.0, gt=0)
    min_saving_share: float = Field(
        0.2, ge=0, lt=1, description="cheaper by less than this is not worth a test"
    )
    retest_after_hours: float = Field(168.0, gt=0)
    approval_hours: float = Field(72.0, gt=0, description="how long a proposal waits before it expires")


class WorkerSettings(Section):
    """The process that runs pipelines and the agent's loop."""

    id: str = "worker-0"
    poll_seconds: float = Field(5.0, gt=0)
    recorded_cases: int = Field(30, ge=0)
    evaluation_concurrency: int = Field(8, ge=1)


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix="META_AGENT__",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(Path("~/.local/share/meta-agent"), validate_default=True)
    database: DatabaseSettings = DatabaseSettings()
    providers: tuple[ProviderSettings, ...] = ()
    use_cases: tuple[UseCaseSettings, ...] = ()
    gateway: GatewaySettings = GatewaySettings()
    control: ControlSettings = ControlSettings()
    worker: WorkerSettings = WorkerSettings()
    agent: AgentSettings = AgentSettings()
    rollout: dict[str, Any] = Field(
        {}, description="what differs from the default rollout plan, for every use case"
    )
    policies: Path | None = Field(None, description="policy file; absent: the packaged default")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment above file: the file's content arrives as the initial values."""
        return env_settings, init_settings

    def provider(self, name: str) -> ProviderSettings | None:
        """The provider of that name."""
        return next((each for each in self.providers if each.name == name), None)


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the file (``META_AGENT_CONFIG``, else ``./meta-agent.yaml`` if it is there) and the environment.

    Raises :class:`ConfigurationError` with file, line and fix.
    """
    environ = os.environ if environ is None else environ
    named = path or (Path(environ["META_AGENT_CONFIG"]) if environ.get("META_AGENT_CONFIG") else None)
    source = named or Path("meta-agent.yaml")
    if named is not None and not named.is_file():
        raise ConfigurationError(f"{named}: there is no such file; check --config or META_AGENT_CONFIG")
    text = source.read_text() if source.is_file() else ""
    document = _parse(source, text)
    if environ.get("META_AGENT_HOME"):
        document["home"] = environ["META_AGENT_HOME"]
    try:
        settings = Settings(**_resolve(document, source, text, environ))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, source, text)) from None
    return _checked(settings, source, text)


def _parse(source: Path, text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: this is not YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: the file must hold keys and values at its top level")
    return document


def _resolve(value: Any, source: Path, text: str, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(each, source, text, environ) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolve(each, source, text, environ) for each in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name.startswith("file:"):
            try:
                return Path(name.removeprefix("file:")).read_text().strip()
            except OSError as error:
                raise ConfigurationError(
                    f"{_place(source, text, match.group(0))}: cannot read the secret: {error}"
                ) from None
        if name not in environ:
            raise ConfigurationError(
                f"{_place(source, text, match.group(0))}: the environment has no {name}; export it, or write the secret as "
                f"${{file:/path/to/it}}"
            )
        return environ[name]

    return _REFERENCE.sub(replace, value)


def _place(source: Path, text: str, needle: str) -> str:
    for number, line in enumerate(text.splitlines(), start=1):
        if needle in line:
            return f"{source}:{number}"
    return str(source)


def _line_of(text: str, location: tuple[int | str, ...]) -> int | None:
    """The line of the YAML node that a validation error points at, or of its nearest parent."""
    node = yaml.compose(text) if text else None
    line: int | None = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _explain(error: ValidationError, source: Path, text: str) -> str:
    lines = []
    for each in error.errors(include_url=False, include_input=False):
        location = each["loc"]
        where = _line_of(text, location)
        place = f"{source}:{where}" if where else "environment or defaults"
        key = ".".join(str(part) for part in location)
        if each["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key {key}; known here: {', '.join(_known(location[:-1]))}")
        else:
            lines.append(f"{place}: {key}: {each['msg']}")
    return "\n".join(lines)


def _known(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        if isinstance(part, int):
            continue
        annotation = (
            model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
        )
        inner = getattr(annotation, "__args__", (annotation,))[0]
        model = inner if hasattr(inner, "model_fields") else model
    return sorted(model.model_fields)


def _checked(settings: Settings, source: Path, text: str) -> Settings:
    names = [each.name for each in settings.providers]
    for use_case in settings.use_cases:
        if use_case.stable.provider not in names:
            place = _place(source, text, use_case.stable.provider)
            raise ConfigurationError(
                f"{place}: use case {use_case.name} is served by provider {use_case.stable.provider}, which is "
                f"not configured; providers: {', '.join(names) or 'none'}"
            )
    for kind, found in (("provider", names), ("use case", [each.name for each in settings.use_cases])):
        doubled = next((name for name in found if found.count(name) > 1), None)
        if doubled:
            raise ConfigurationError(
                f"{source}: there are two entries for {kind} {doubled}; names are unique"
            )
    for provider in settings.providers:
        if not provider.url and provider.kind not in ("anthropic", "litellm"):
            raise ConfigurationError(
                f"{source}: provider {provider.name} of kind {provider.kind} needs a base_url"
            )
    base = source.parent if source.is_file() else Path.cwd()
    return settings.model_copy(
        update={
            "home": settings.home.expanduser(),
            "policies": settings.policies and _absolute(base, settings.policies),
            "use_cases": tuple(
                each.model_copy(update={"suite": each.suite and _absolute(base, each.suite)})
                for each in settings.use_cases
            ),
        }
    )


def _absolute(base: Path, path: Path) -> Path:
    return path if path.is_absolute() else (base / path).resolve()
