"""Settings: one YAML file, and environment variables ``META_AGENT__SECTION__KEY`` above it.

Secrets are written as ``${NAME}`` and read from the environment, or as ``${file:/path}`` from a file.
An unknown key, or a secret that is not there, stops the start with the line and the fix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from meta_agent.gateway_settings import TRANSLATED_KINDS, GatewaySettings, ProviderSettings
from meta_agent.section import Section
from meta_agent.serving_settings import ServingSettings, TargetSettings
from meta_agent.settings_file import ConfigurationError as ConfigurationError
from meta_agent.settings_file import line_of, parse, read_file, resolve
from storage.vocabulary import AssignmentUnit, Risk

_PREFIX = "META_AGENT__"


class DatabaseSettings(Section):
    """Where PostgreSQL is."""

    url: SecretStr | None = Field(None, description="absent: an embedded server under META_AGENT_HOME")
    pool_size: int = Field(5, ge=1, le=100)

    @field_validator("url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _names_a_database(url.get_secret_value()):
            # Without the URL itself: it holds a password.
            raise ValueError(
                "write postgresql://user:password@host:port/name, with the characters @ : / # ? % of a "
                "password percent-encoded"
            )
        return url


class UseCaseSettings(Section):
    """A named need of an application."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    risk: Risk = Risk.MEDIUM
    stable: TargetSettings = Field(description="who serves before anything was decided about it")
    constraints: dict[str, Any] = Field({})
    budget_usd_per_month: float | None = Field(None, ge=0)
    assignment_unit: AssignmentUnit = AssignmentUnit.CONVERSATION
    suite: Path | None = Field(None, description="YAML file with evaluation cases, relative to this file")
    rollout: dict[str, Any] = Field({}, description="what differs from the default rollout plan")
    gateway: ServingSettings = Field(ServingSettings(), description="how the gateway serves it")


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

    planner: Literal["rules", "llm"] | None = Field(
        None, description="absent: llm where a model is named, else rules"
    )
    model: str | None = Field(None, description="provider/model that plans, e.g. openai/gpt-5-mini")
    interval_seconds: float = Field(300.0, gt=0)
    autonomy: Literal["observe", "propose", "act_with_approval", "act"] = "act_with_approval"
    scan_every_seconds: float = Field(3600.0, gt=0)
    min_saving_share: float = Field(
        0.2, ge=0, lt=1, description="cheaper by less than this is not worth a test"
    )
    retest_after_hours: float = Field(168.0, gt=0)
    approval_hours: float = Field(72.0, gt=0, description="how long a proposal waits before it expires")

    @property
    def chosen_planner(self) -> Literal["rules", "llm"]:
        """Who plans."""
        return self.planner or ("llm" if self.model else "rules")


class WorkerSettings(Section):
    """The process that runs pipelines and the agent's loop."""

    id: str = "worker-0"
    poll_seconds: float = Field(5.0, gt=0)
    recorded_cases: int = Field(30, ge=0)
    evaluation_concurrency: int = Field(8, ge=1)
    retention_every_seconds: float = Field(
        3600.0, gt=0, description="between two looks for what has been kept long enough"
    )


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix="META_AGENT__",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
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
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line, for machines")

    @field_validator("home")
    @classmethod
    def _is_absolute(cls, home: Path) -> Path:
        """However settings come about: a directory that is called ``~`` is nobody's home."""
        return home.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What :func:`load_settings` has read and merged, and nothing besides."""
        return (init_settings,)

    def provider(self, name: str) -> ProviderSettings | None:
        """The provider of that name."""
        return next((each for each in self.providers if each.name == name), None)


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the file (``META_AGENT_CONFIG``, else ``./meta-agent.yaml`` if it is there) and the environment.

    Raises :class:`ConfigurationError` with file, line and fix, and without values, which may be secret.
    """
    environ = os.environ if environ is None else environ
    source, text = read_file(path, environ)
    document = resolve(parse(source, text), source, text, environ)
    if environ.get("META_AGENT_HOME"):
        document["home"] = environ["META_AGENT_HOME"]
    above = _from_environment(environ)
    try:
        settings = Settings(**_merged(document, above))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, source, text, above)) from None
    return _checked(settings, source, text)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What ``META_AGENT__SECTION__KEY`` says, nested as in the file."""
    given = {name.lower(): value for name, value in environ.items() if name.upper().startswith(_PREFIX)}
    for name in given:
        key = name.removeprefix(_PREFIX.lower()).partition("__")[0]
        if key not in Settings.model_fields:
            raise ConfigurationError(
                f"environment {name.upper()}: unknown key {key}; known here: {', '.join(_known(()))}"
            )
    source = EnvSettingsSource(Settings)
    source.env_vars = given
    try:
        return source()
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        variable = _PREFIX + (field[1].upper() if field else "...")
        raise ConfigurationError(f"environment {variable}: a list or mapping is written as JSON") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _names_a_database(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return False
    driver_known = parts.scheme in ("postgresql", "postgres", "postgresql+psycopg")
    return driver_known and len(parts.path) > 1 and "@" not in parts.path


def _explain(error: ValidationError, source: Path, text: str, above: Mapping[str, Any]) -> str:
    lines = []
    for each in error.errors(include_url=False, include_input=False):
        location = each["loc"]
        place = _origin(location, source, text, above)
        key = ".".join(str(part) for part in location)
        if each["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key {key}; known here: {', '.join(_known(location[:-1]))}")
        elif each["type"] == "model_type":
            lines.append(f"{place}: {key} holds keys and values; known here: {', '.join(_known(location))}")
        else:
            lines.append(f"{place}: {key}: {each['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _origin(location: tuple[int | str, ...], source: Path, text: str, above: Mapping[str, Any]) -> str:
    """Who said what an error points at: a variable of the environment, or a line of the file."""
    node: Any = above
    path: list[str] = []
    for part in location:
        if not isinstance(node, Mapping) or part not in node:
            break
        path.append(str(part).upper())
        node = node[part]
    if path and not isinstance(node, Mapping):
        return f"environment {_PREFIX}{'__'.join(path)}"
    where = line_of(text, location)
    return f"{source}:{where}" if where else str(source)


def _known(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = field and getattr(field.annotation, "__args__", (field.annotation,))[0]
        model = inner if hasattr(inner, "model_fields") else model
    return sorted(model.model_fields)


def _checked(settings: Settings, source: Path, text: str) -> Settings:
    for problem in _contradictions(settings, source, text):
        raise ConfigurationError(problem)
    base = _base(source)
    return settings.model_copy(
        update={
            "policies": settings.policies and _absolute(base, settings.policies),
            "providers": tuple(
                each.model_copy(update={"ca_file": each.ca_file and _absolute(base, each.ca_file)})
                for each in settings.providers
            ),
            "use_cases": tuple(
                each.model_copy(update={"suite": each.suite and _absolute(base, each.suite)})
                for each in settings.use_cases
            ),
        }
    )


def _contradictions(settings: Settings, source: Path, text: str) -> Iterator[str]:
    """What no key alone can tell."""
    names = [each.name for each in settings.providers]
    use_cases = [each.name for each in settings.use_cases]
    for section, kind, found in (("providers", "provider", names), ("use_cases", "use case", use_cases)):
        for place, name in enumerate(found):
            if name in found[:place]:
                where = _origin((section, place, "name"), source, text, {})
                yield f"{where}: there are two entries for {kind} {name}; names are unique"
    yield from _provider_contradictions(settings, source, text)
    for place, use_case in enumerate(settings.use_cases):
        for path, target in _targets(use_case):
            key, problem = cannot_serve(settings, target) or (None, "")
            if key is not None:
                where = _origin(("use_cases", place, *path, key), source, text, {})
                yield f"{where}: use case {use_case.name} is served by {problem}"
    yield from _model_contradictions(settings, source, text)


def _provider_contradictions(settings: Settings, source: Path, text: str) -> Iterator[str]:
    for place, provider in enumerate(settings.providers):
        translated = provider.kind in TRANSLATED_KINDS
        where = _origin(("providers", place), source, text, {})
        if not provider.url and not translated:
            yield f"{where}: provider {provider.name} of kind {provider.kind} needs a base_url"
        if provider.extra.get_secret_value() and not translated:
            where = _origin(("providers", place, "extra"), source, text, {})
            yield (
                f"{where}: provider {provider.name} of kind {provider.kind} is called without litellm, for "
                "which extra is meant; use base_url, api_key and headers"
            )
        if provider.ca_file is not None and not _absolute(_base(source), provider.ca_file).is_file():
            where = _origin(("providers", place, "ca_file"), source, text, {})
            yield f"{where}: the ca_file of provider {provider.name} is not there"


def _targets(use_case: UseCaseSettings) -> Iterator[tuple[tuple[int | str, ...], TargetSettings]]:
    """Whatever may answer for a use case, and where the file says so."""
    yield ("stable",), use_case.stable
    for place, fallback in enumerate(use_case.gateway.fallbacks):
        yield ("gateway", "fallbacks", place), fallback
    if use_case.gateway.downgrade is not None:
        yield ("gateway", "downgrade"), use_case.gateway.downgrade


def cannot_serve(settings: Settings, target: TargetSettings) -> tuple[str, str] | None:
    """(the key that is wrong, why) if the gateway could not or must not have that model answer."""
    if settings.provider(target.provider) is None:
        names = ", ".join(each.name for each in settings.providers) or "none"
        return "provider", f"provider {target.provider}, which is not configured; providers: {names}"
    if f"{target.provider}/{target.model}" == settings.agent.model:
        return "model", f"{settings.agent.model}, which plans for the agent; it never answers an application"
    return None


def _model_contradictions(settings: Settings, source: Path, text: str) -> Iterator[str]:
    agent = settings.agent
    provider, separator, model = (agent.model or "").partition("/")
    where = _origin(("agent", "model"), source, text, {})
    if agent.model is not None and not (separator and model):
        yield f"{where}: agent.model is written provider/model, for example openai/gpt-5-mini"
    elif agent.model is not None and settings.provider(provider) is None:
        yield f"{where}: agent.model names the provider {provider}, which is not configured"
    elif agent.model is None and agent.planner == "llm":
        yield f"{_origin(('agent', 'planner'), source, text, {})}: planner llm needs agent.model"


def _base(source: Path) -> Path:
    """What paths in the settings are relative to."""
    return source.parent if source.is_file() else Path.cwd()


def _absolute(base: Path, path: Path) -> Path:
    return path if path.is_absolute() else (base / path).resolve()
