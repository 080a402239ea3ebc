"""The settings file before anybody asks what its keys mean: YAML, the secrets that it refers to, its lines.

Knows no key. No message repeats what stands in the file besides keys: a value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_REFERENCE = re.compile(r"\$\{([^}]+)\}")


class ConfigurationError(Exception):
    """The configuration cannot be used; the message says where and how to mend it."""


def read_file(path: Path | None, environ: Mapping[str, str]) -> tuple[Path, str]:
    """The file that is meant, and its text: empty if nobody named one and there is none."""
    named = path or (Path(environ["META_AGENT_CONFIG"]) if environ.get("META_AGENT_CONFIG") else None)
    source = named or Path("meta-agent.yaml")
    if named is not None and not named.is_file():
        raise ConfigurationError(f"{named}: there is no such file; check --config or META_AGENT_CONFIG")
    try:
        return source, source.read_text(encoding="utf-8") if source.is_file() else ""
    except OSError as error:
        raise ConfigurationError(f"{source}: the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{source}: the file is not text in UTF-8") from None


def parse(source: Path, text: str) -> dict[str, Any]:
    """The keys and values of a file."""
    try:
        _refuse_doubled_keys(source, yaml.compose(text, Loader=yaml.SafeLoader))
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(yaml_problem(source, error)) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: this is not YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: the file must hold keys and values at its top level")
    return {str(key): value for key, value in document.items()}


def yaml_problem(source: Path, error: yaml.MarkedYAMLError) -> str:
    """Where the YAML breaks, without the line itself, which may hold a secret."""
    place = f"{source}:{error.problem_mark.line + 1}" if error.problem_mark else str(source)
    known = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    problem = f": {error.problem}" if known else "; put text that begins with * & or ! in quotes"
    return f"{place}: this is not YAML{problem}"


def _refuse_doubled_keys(source: Path, node: yaml.Node | None) -> None:
    """YAML would silently keep the last of two."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_doubled_keys(source, each)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            raise ConfigurationError(
                f"{source}:{key.start_mark.line + 1}: the key {key.value} is written twice"
            )
        seen.add(str(key.value))
        _refuse_doubled_keys(source, value)


def resolve(value: Any, source: Path, text: str, environ: Mapping[str, str]) -> Any:
    """The same value with every ``${NAME}`` and ``${file:path}`` replaced by its secret."""
    if isinstance(value, dict):
        return {key: resolve(each, source, text, environ) for key, each in value.items()}
    if isinstance(value, list):
        return [resolve(each, source, text, environ) for each in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        try:
            return _secret(match.group(1), source.parent, environ)
        except ConfigurationError as error:
            raise ConfigurationError(f"{_place_of(source, text, match.group(0))}: {error}") from None

    return _REFERENCE.sub(replace, value)


def _secret(name: str, base: Path, environ: Mapping[str, str]) -> str:
    """What ``${name}`` stands for."""
    if not name.startswith("file:"):
        if environ.get(name):
            return environ[name]
        raise ConfigurationError(
            f"the environment has no {name}; export it, or write the secret as ${{file:/path/to/it}}"
        )
    path = base / Path(name.removeprefix("file:")).expanduser()
    try:
        content = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read the secret in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"cannot read the secret in {path}: it is not text in UTF-8") from None
    if not content:
        raise ConfigurationError(f"the secret in {path} is empty; write it into the file")
    return content


def _place_of(source: Path, text: str, needle: str) -> str:
    for number, line in enumerate(text.splitlines(), start=1):
        if needle in line.partition("# ")[0]:
            return f"{source}:{number}"
    return str(source)


def line_of(text: str, location: tuple[int | str, ...]) -> int | None:
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
