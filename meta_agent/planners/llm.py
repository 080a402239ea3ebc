"""A language model as planner: the same facts, the same menu, ids only.

What it reads holds no word that a third party wrote; what it writes is parsed as a closed union and held
against the facts. One bad answer is sent back with what was wrong; after a second one, or any failure of
the model, the rules plan and the plan says why.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from meta_agent.fleet_facts import FleetFacts
from meta_agent.planner import MAX_ACTIONS, Plan, PlannedAction, refusal
from meta_agent.planners.rules import plan_by_rules
from meta_agent.signals import Signal

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage

log = logging.getLogger(__name__)

#: For both tries together.
DEADLINE_SECONDS = 150.0


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Identifier = Annotated[str, Field(min_length=1, max_length=200)]


def _storable(text: str) -> str:
    """No NUL and no lone surrogate: the database takes neither, and the cycle would break on them."""
    if "\x00" in text or (not text.isascii() and text.encode("utf-8", "replace").decode() != text):
        raise ValueError("not storable text")
    return text


Words = Annotated[str, AfterValidator(_storable)]


class _Action(_Wire):
    reason: Words = Field(max_length=600)
    expected_saving_share: float | None = Field(ge=-10, le=1, allow_inf_nan=False)

    def arguments(self) -> dict[str, str]:
        return {
            name: value
            for name, value in self.model_dump().items()
            if name not in ("tool", "reason", "expected_saving_share")
        }


class _Scan(_Action):
    tool: Literal["scan"]


class _Rank(_Action):
    tool: Literal["rank"]
    use_case: Identifier


class _Test(_Action):
    tool: Literal["test"]
    use_case: Identifier
    offering_id: Identifier


class _Deploy(_Action):
    tool: Literal["deploy"]
    use_case: Identifier
    release_id: Identifier


class _Rollback(_Action):
    tool: Literal["rollback"]
    use_case: Identifier


class _Abort(_Action):
    tool: Literal["abort"]
    rollout_id: Identifier


class _Reply(_Wire):
    summary: Words = Field(max_length=1000)
    actions: list[
        Annotated[_Scan | _Rank | _Test | _Deploy | _Rollback | _Abort, Field(discriminator="tool")]
    ] = Field(max_length=MAX_ACTIONS)


def reply_schema() -> dict[str, Any]:
    """The JSON schema of a reply, in the strict dialect that providers accept.

    A dictionary and not a class: with a class a bad reply raises within the client and its text is lost.
    """
    actions = [
        _object({"tool": {"type": "string", "enum": [tool]}, **{name: {"type": "string"} for name in names}})
        for tool, names in (
            ("scan", ()),
            ("rank", ("use_case",)),
            ("test", ("use_case", "offering_id")),
            ("deploy", ("use_case", "release_id")),
            ("rollback", ("use_case",)),
            ("abort", ("rollout_id",)),
        )
    ]
    for action in actions:
        action["properties"] |= {
            "reason": {"type": "string"},
            "expected_saving_share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        }
        action["required"] = list(action["properties"])
    plan = _object({"summary": {"type": "string"}, "actions": {"type": "array", "items": {"anyOf": actions}}})
    return {"title": "plan", "description": "At most three actions from the menu, or none.", **plan}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


class BadReplyError(ValueError):
    """The model answered something that is no plan; the message is ours and safe to send back."""


class LlmPlanner:
    """Plans with a chat model, and with the rules when it fails."""

    def __init__(self, name: str, build: Callable[[], BaseChatModel]) -> None:
        self.name = f"llm:{name}"
        self._build = build
        self._model: BaseChatModel | None = None

    async def plan(self, facts: FleetFacts, signals: tuple[Signal, ...]) -> Plan:
        """What the model makes of these signals. Asks nothing when there is nothing to decide, or no time."""
        rules = plan_by_rules(facts, signals)
        # Proof of harm leaves nothing to weigh: a model that is slow, wrong or led astray must not stand
        # between it and the way back.
        urgent = any(action.tool == "rollback" for action in rules.actions)
        if facts.paused or not signals or urgent:
            return rules
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._ask(facts, signals, rules)
        except Exception as error:  # the boundary to a third party: whatever breaks there, the rules plan
            why = _describe(error)
            log.warning("%s failed, the rules plan instead: %s", self.name, why)
            return Plan(
                planner=f"rules (instead of {self.name})",
                actions=rules.actions,
                summary=f"{rules.summary} [{self.name} failed: {why}]",
                holds=rules.holds,
            )

    async def _ask(self, facts: FleetFacts, signals: tuple[Signal, ...], rules: Plan) -> Plan:
        if self._model is None:
            # Importing a client library takes seconds of CPU: not on the loop.
            self._model = await asyncio.to_thread(self._build)
        messages = build_messages(facts, signals)
        structured = self._model.with_structured_output(
            reply_schema(), method="json_schema", include_raw=True
        )
        said = await structured.ainvoke(messages)
        try:
            return self._read(said, facts, rules)
        except BadReplyError as error:
            said = await structured.ainvoke([*messages, *_repair(said, error)])
            return self._read(said, facts, rules)

    def _read(self, said: Any, facts: FleetFacts, rules: Plan) -> Plan:
        reply = parse_reply(said["parsed"])
        actions = tuple(_planned(each, rules) for each in reply.actions)
        problems = [
            f"action {number} ({action.tool}): {why}"
            for number, action in enumerate(actions, start=1)
            if (why := refusal(facts, action))
        ]
        if problems:
            raise BadReplyError("; ".join(problems))
        targets = {action.arguments.get("use_case", action.tool) for action in actions}
        if len(targets) < len(actions):
            raise BadReplyError("there is more than one action for a use case")
        return Plan(
            planner=self.name,
            actions=actions,
            summary=reply.summary,
            holds={} if actions else {None: reply.summary},
        )


def parse_reply(parsed: Any) -> _Reply:
    """The reply as it must be. Raises :class:`BadReplyError`, whose message repeats nothing of the reply."""
    if parsed is None:
        raise BadReplyError("the answer was not JSON of the schema")
    try:
        return _Reply.model_validate(parsed)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise BadReplyError(
            "; ".join(f"{_place(each['loc'])}: {each['type']}" for each in problems[:5])
        ) from None


def _place(location: tuple[int | str, ...]) -> str:
    known = {*_Reply.model_fields, "reason", "expected_saving_share", "tool"}
    return ".".join(str(part) for part in location if isinstance(part, int) or part in known) or "plan"


def _planned(action: _Action, rules: Plan) -> PlannedAction:
    tool: str = action.tool  # type: ignore[attr-defined]  # every member of the union has it
    saving = action.expected_saving_share
    return PlannedAction(
        tool=tool,
        arguments=action.arguments(),
        reason=action.reason,
        prediction=None if saving is None else {"saving_share": saving},
        alternatives=(
            *({"tool": each.tool, "arguments": each.arguments, "by": "rules"} for each in rules.actions),
            {"tool": None, "reason": "do nothing"},
        ),
    )


def build_messages(facts: FleetFacts, signals: tuple[Signal, ...]) -> list[BaseMessage]:
    """The prompt: our own instructions, then the facts as data."""
    from langchain_core.messages import HumanMessage, SystemMessage

    data = {
        "facts": facts.for_planner(),
        "signals": [signal.for_planner() for signal in signals],
    }
    prompt = files("meta_agent").joinpath("prompts/planner.md").read_text(encoding="utf-8")
    return [SystemMessage(prompt), HumanMessage(json.dumps(data, separators=(",", ":")))]


def _repair(said: Any, error: BadReplyError) -> list[BaseMessage]:
    from langchain_core.messages import HumanMessage

    # The model's own text comes back as it was; the sentence about it is ours.
    return [said["raw"], HumanMessage(f"That plan cannot be used: {error}. Answer with a corrected plan.")]


def _describe(error: Exception) -> str:
    """What went wrong, without the text of a provider: it may hold secrets, or words meant to steer us."""
    status = getattr(error, "status_code", None)
    if isinstance(error, BadReplyError):
        return f"two unusable answers ({error})"
    return type(error).__name__ + (f" {status}" if isinstance(status, int) else "")
