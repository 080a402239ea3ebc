"""What a tool is: a name, a sentence, and typed arguments. What it does is a pipeline's affair.

Tools know nothing of LangChain, HTTP or the terminal: agent, console and command line press the same button.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class UnknownToolError(ValueError):
    """There is no tool of that name."""


class ToolArgumentsError(ValueError):
    """The arguments do not fit the tool; the message says which and why."""


class Arguments(BaseModel):
    """Typed arguments: ids and names only. Facts are looked up, never passed in."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_min_length=1, str_max_length=200)

    @model_validator(mode="after")
    def _printable(self) -> Self:
        """Ids and names hold nothing that a database or a terminal would stumble over."""
        for name, value in self:
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"{name} holds characters that no id or name has")
        return self


@dataclass(frozen=True, slots=True)
class Tool:
    """One verb."""

    name: str
    description: str
    arguments: type[Arguments]

    def parse(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as they are stored and digested. Raises :class:`ToolArgumentsError`."""
        try:
            return self.arguments.model_validate(dict(arguments)).model_dump(mode="json")
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in each['loc']) or 'arguments'}: {each['msg']}"
                for each in error.errors(include_url=False, include_input=False)
            )
            raise ToolArgumentsError(f"{self.name}: {problems}") from None
