"""From YAML to a :class:`~policies.policy.Policy`, or an error that names the key.

The only module here that knows pydantic and YAML. A file that would loosen a hard floor, or
a use case that would loosen the base, is refused: there is no quiet correction.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from policies.policy import (
    DAY_MINUTES,
    REQUIRED_GATES,
    SAFETY_TOOLS,
    SIMILARITY_FLOOR,
    TIGHTER,
    TOOLS,
    Autonomy,
    Blackout,
    Gate,
    Limits,
    Policy,
    Tier,
    ToolRule,
    UseCaseRules,
)
from storage.vocabulary import Risk, Role

#: The policy that ships with the product.
DEFAULT_PATH = Path(__file__).with_name("default.yaml")

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")


class PolicyError(ValueError):
    """The policy file cannot be used; the message names every key at fault."""

    def __init__(self, problems: list[str]) -> None:
        """Join the problems, one a line."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Tier(_Strict):
    approvals: int = Field(ge=0, le=9)
    roles: tuple[Role, ...] = ()


class _Tool(_Strict):
    tier: str | dict[Risk, str]
    per_day: int = Field(ge=1)
    spends: bool = False
    requires: tuple[Gate, ...] = ()
    safety: bool = False


class _Limits(_Strict):
    min_similarity: float = Field(ge=SIMILARITY_FLOOR, le=1)
    min_safety: float = Field(ge=0, le=1)
    max_evaluation_age_hours: float = Field(gt=0)
    min_evaluation_cases: int = Field(ge=1)
    pass_rate_margin: float = Field(ge=0, le=1)
    retirement_horizon_days: float = Field(ge=0)
    rollout_cooldown_hours: float = Field(ge=0)
    rollback_cooldown_hours: float = Field(ge=0)
    rejection_cooldown_hours: float = Field(ge=0)
    max_rollbacks_per_day: int = Field(ge=0)
    max_share_alone: float = Field(ge=0, le=1)


class _Blackout(_Strict):
    name: str = Field(min_length=1)
    days: tuple[Day, ...] = Field(default=_DAYS, min_length=1)
    start: str = Field(default="00:00", alias="from")
    end: str = Field(default="24:00", alias="to")
    first: date | None = None
    last: date | None = None


class _UseCase(_Strict):
    limits: dict[str, float] = Field(default_factory=dict)
    at_least: dict[str, str] = Field(default_factory=dict)
    autonomy: Autonomy | None = None
    blackouts: tuple[_Blackout, ...] = ()


class _File(_Strict):
    version: int = Field(ge=1)
    timezone: str = "UTC"
    autonomy: Autonomy = Autonomy.ACT_WITH_APPROVAL
    tiers: dict[str, _Tier]
    tools: dict[str, _Tool]
    limits: _Limits
    blackouts: tuple[_Blackout, ...] = ()
    use_cases: dict[str, _UseCase] = Field(default_factory=dict)


def load_policy(source: Path | str) -> Policy:
    """Read a policy from a file (``Path``) or from YAML text (``str``)."""
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader underneath
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PolicyError([f"{source if isinstance(source, Path) else 'policy'}: {error}"]) from error
    if not isinstance(data, dict):
        raise PolicyError(["policy: a mapping with version, tiers, tools and limits is needed"])
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise PolicyError([_told(each) for each in error.errors()]) from None
    problems = list(_problems(file))
    if problems:
        raise PolicyError(problems)
    return _policy(file)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build one mapping, or say which key appears again and where."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is written twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _told(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    if path.endswith((".from", ".to")) and error["type"] == "string_type":
        return f'{path}: quote the time, as "18:00"'
    return f"{path}: {error['msg']}"


# --- what the shape alone cannot say --------------------------------------------------


def _problems(file: _File) -> Iterator[str]:
    if file.timezone != "UTC":
        try:
            ZoneInfo(file.timezone)
        except (KeyError, ValueError, OSError):
            yield f"timezone: {file.timezone!r} is not a known time zone"
    for name, tier in file.tiers.items():
        if tier.approvals and not tier.roles:
            yield f"tiers.{name}.roles: name the roles that may approve"
        for role in tier.roles:
            if role.rank < Role.APPROVER.rank:
                yield f"tiers.{name}.roles: a {role.value} may not approve"
    for name in sorted(SAFETY_TOOLS - file.tools.keys()):
        yield f"tools.{name}: the way back must be listed, or it would be denied when it is needed"
    for name, tool in file.tools.items():
        yield from _tool_problems(file, name, tool)
    yield from _blackout_problems("blackouts", file.blackouts)
    if any(True for _ in _unknown_tiers(file)):
        return  # the comparisons below need the tiers
    for name, case in file.use_cases.items():
        yield from _use_case_problems(file, f"use_cases.{name}", case)


def _unknown_tiers(file: _File) -> Iterator[str]:
    for name, tool in file.tools.items():
        for tier in _tiers_of(tool).values():
            if tier not in file.tiers:
                yield f"tools.{name}.tier: there is no tier {tier!r}"


def _tiers_of(tool: _Tool) -> dict[Risk, str]:
    return tool.tier if isinstance(tool.tier, dict) else dict.fromkeys(Risk, tool.tier)


def _tool_problems(file: _File, name: str, tool: _Tool) -> Iterator[str]:
    path = f"tools.{name}"
    if name not in TOOLS:
        yield f"{path}: unknown tool; known are {', '.join(TOOLS)}"
    if tool.safety and name not in SAFETY_TOOLS:
        yield f"{path}.safety: only {' and '.join(sorted(SAFETY_TOOLS))} may be safety tools"
    missing = REQUIRED_GATES.get(name, frozenset()) - set(tool.requires)
    if missing:
        yield f"{path}.requires: {', '.join(sorted(missing))} cannot be left out"
    tiers = _tiers_of(tool)
    absent = [risk.value for risk in Risk if risk not in tiers]
    if absent:
        yield f"{path}.tier: no tier for {', '.join(absent)} risk"
    unknown = [tier for tier in tiers.values() if tier not in file.tiers]
    for tier in dict.fromkeys(unknown):
        yield f"{path}.tier: there is no tier {tier!r}"
    if absent or unknown:
        return
    approvals = [file.tiers[tiers[risk]].approvals for risk in Risk]
    if approvals != sorted(approvals):
        yield f"{path}.tier: a higher risk may not need fewer approvals"


def _blackout_problems(path: str, windows: tuple[_Blackout, ...]) -> Iterator[str]:
    for index, window in enumerate(windows):
        for key, value in (("from", window.start), ("to", window.end)):
            if not _TIME.fullmatch(value):
                yield f"{path}.{index}.{key}: {value!r} is not a time; write hours and minutes as 18:00"
        if window.start == window.end:
            yield f"{path}.{index}: from and to are equal; leave both out for the whole day"
        if window.first and window.last and window.last < window.first:
            yield f"{path}.{index}: last is before first"


def _use_case_problems(file: _File, path: str, case: _UseCase) -> Iterator[str]:
    base = file.limits.model_dump()
    for name, value in case.limits.items():
        if name not in base:
            yield f"{path}.limits.{name}: unknown key"
        elif (value - base[name]) * TIGHTER[name] < 0:
            yield f"{path}.limits.{name}: {value:g} is looser than {base[name]:g}; overrides may only tighten"
    if not any(name not in base for name in case.limits):
        try:
            _Limits.model_validate(base | case.limits)
        except ValidationError as error:
            yield from (f"{path}.limits.{_told(each)}" for each in error.errors())
    if case.autonomy and case.autonomy.rank > file.autonomy.rank:
        yield f"{path}.autonomy: {case.autonomy} is looser than {file.autonomy}; overrides may only tighten"
    for tool, tier in case.at_least.items():
        yield from _at_least_problems(file, f"{path}.at_least.{tool}", tool, tier)
    yield from _blackout_problems(f"{path}.blackouts", case.blackouts)


def _at_least_problems(file: _File, path: str, tool: str, tier: str) -> Iterator[str]:
    if tool not in file.tools:
        yield f"{path}: the tool is not listed under tools"
    elif tier not in file.tiers:
        yield f"{path}: there is no tier {tier!r}"
    else:
        loosest = min(file.tiers[name].approvals for name in _tiers_of(file.tools[tool]).values())
        if file.tiers[tier].approvals < loosest:
            yield f"{path}: {tier} is looser than what the tool needs; overrides may only tighten"


# --- building -------------------------------------------------------------------------


def _policy(file: _File) -> Policy:
    base = UseCaseRules(Limits(**file.limits.model_dump()), file.autonomy, _blackouts(file.blackouts))
    return Policy(
        version=file.version,
        timezone=file.timezone,
        tiers={name: Tier(name, tier.approvals, tier.roles) for name, tier in file.tiers.items()},
        tools={
            name: ToolRule(name, _tiers_of(tool), tool.per_day, tool.spends, tool.requires, tool.safety)
            for name, tool in file.tools.items()
        },
        base=base,
        use_cases={name: _use_case(file, case) for name, case in file.use_cases.items()},
    )


def _use_case(file: _File, case: _UseCase) -> UseCaseRules:
    """The base, tightened. Base blackouts hold for every use case and are not repeated."""
    limits = _Limits.model_validate(file.limits.model_dump() | case.limits)
    return UseCaseRules(
        Limits(**limits.model_dump()),
        case.autonomy or file.autonomy,
        _blackouts(case.blackouts),
        dict(case.at_least),
    )


def _blackouts(windows: tuple[_Blackout, ...]) -> tuple[Blackout, ...]:
    return tuple(
        Blackout(
            window.name,
            tuple(sorted(_DAYS.index(day) for day in set(window.days))),
            _minutes(window.start),
            _minutes(window.end),
            window.first,
            window.last,
        )
        for window in windows
    )


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return min(int(hours) * 60 + int(minutes), DAY_MINUTES)
