"""How a use case is served: limits, patience, what is kept, who stands in.

The same model reads the settings file, the API and the command line. In the database releases stand where
deployments stand here: see :mod:`meta_agent.serving`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from meta_agent.section import Section
from storage.vocabulary import Capture, OverBudget


class TargetSettings(Section):
    """Something that can answer."""

    provider: str
    model: str
    parameters: dict[str, Any] = Field({})
    system_prompt: str | None = None
    guard_profile: str = "default"


#: A limit over that limits nothing, and numbers have an end in JSON as databases read it.
_MOST = 10**15


class LimitsSettings(Section):
    """What a key or a use case may take; what is absent is not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests_per_minute: int | None = Field(None, ge=1, le=_MOST)
    tokens_per_minute: int | None = Field(None, ge=1, le=_MOST, description="prompt and completion together")
    concurrent: int | None = Field(
        None, ge=1, le=_MOST, description="requests at once, in each gateway process"
    )
    usd_per_day: Decimal | None = Field(None, ge=0, le=_MOST)
    usd_per_month: Decimal | None = Field(None, ge=0, le=_MOST)
    over_budget: OverBudget = OverBudget.BLOCK
    max_body_bytes: int | None = Field(None, ge=1, le=_MOST)
    max_tokens: int | None = Field(
        None, ge=1, le=_MOST, description="of one answer; a request for more gets this"
    )


class WaitingSettings(Section):
    """How long a caller is kept waiting; what is absent is the gateway's or the provider's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    first_token_seconds: float | None = Field(None, gt=0)
    idle_seconds: float | None = Field(None, gt=0)
    total_seconds: float | None = Field(None, gt=0)
    retries: int = Field(1, ge=0, le=10)
    hedge_after_seconds: float | None = Field(None, gt=0)


class ShadowBudgetSettings(Section):
    """What mirroring to a shadow may take."""

    usd_per_day: Decimal | None = Field(None, ge=0)
    concurrent: int | None = Field(None, ge=1)


class ServingSettings(Section):
    """The rules by which one use case is served."""

    limits: LimitsSettings = LimitsSettings()
    waiting: WaitingSettings = WaitingSettings()
    capture: Capture = Capture.FULL
    retention_days: int | None = Field(None, ge=1, description="absent: nothing is removed by itself")
    shadow: ShadowBudgetSettings = ShadowBudgetSettings()
    fallbacks: tuple[TargetSettings, ...] = Field((), max_length=10, description="asked in this order")
    downgrade: TargetSettings | None = None

    @model_validator(mode="after")
    def _has_whom_it_names(self) -> Self:
        if self.limits.over_budget is OverBudget.DOWNGRADE and self.downgrade is None:
            raise ValueError("over_budget: downgrade needs a downgrade: a provider and a model")
        if self.waiting.hedge_after_seconds is not None and not self.fallbacks:
            raise ValueError("hedge_after_seconds needs fallbacks: the first of them is asked too")
        return self

    @property
    def targets(self) -> tuple[TargetSettings, ...]:
        """Everything that it may have answer."""
        return self.fallbacks if self.downgrade is None else (*self.fallbacks, self.downgrade)


def sentences(error: ValidationError) -> str:
    """What is wrong, without the values."""
    problems = []
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join(str(part) for part in each["loc"])
        problem = "there is no such key" if each["type"] == "extra_forbidden" else each["msg"]
        problems.append(f"{place}: {problem}" if place else problem)
    return "; ".join(each.replace("Value error, ", "") for each in problems)
