"""Reads a Messages request: every field that chat completions call by another name.

Fields that are not in its table pass untouched, whether chat completions know them or not. What only
Anthropic's own servers can do is refused by name. Knows the messages' content only by its module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.errors import ApiError
from gateway.surfaces.messages_content import invalid, read_messages, read_system, text_in, unsupported

Fields = dict[str, Any]

#: What makes Anthropic's servers act by themselves.
_REFUSED = ("container", "mcp_servers")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TOOL_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict"})
#: Chat completions want a name for every schema; models hardly see it.
_SCHEMA_NAME = "answer"


def read_request(body: Fields) -> Fields:
    """The chat completion request that asks the same."""
    for name in _REFUSED:
        if body.get(name):
            raise unsupported(name, "is something that only Anthropic's servers have", "Leave it out.")
    if body.get("max_tokens") is None:
        text = "'max_tokens' is missing: say how many tokens the answer may have."
        raise ApiError(400, text, code="missing_field", param="max_tokens")
    request = {name: value for name, value in body.items() if name not in _READERS}
    for name, read in _READERS.items():
        value = body.get(name)
        if value is not None:
            request.update(read(value))
    _settle_effort(request)
    request["messages"] = read_system(body.get("system")) + read_messages(body.get("messages"))
    return request


def _max_tokens(value: Any) -> Fields:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise invalid("max_tokens", "a positive integer")
    return {"max_tokens": value}


def _stop_sequences(value: Any) -> Fields:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise invalid("stop_sequences", "a list of strings")
    return {"stop": value} if value else {}


def _stream(value: Any) -> Fields:
    # A stream of ours ends with its usage, so the usage of the stream we read must not be left out.
    options: Fields = {"stream_options": {"include_usage": True}} if value is True else {}
    return {"stream": value, **options}


def _service_tier(value: Any) -> Fields:
    return {"service_tier": "default" if value == "standard_only" else value}


def _metadata(value: Any) -> Fields:
    if not isinstance(value, dict):
        raise invalid("metadata", "an object")
    rest = {name: entry for name, entry in value.items() if name != "user_id"}
    fields: Fields = {"metadata": rest} if rest else {}
    if value.get("user_id") is not None:
        fields["user"] = text_in(value, "user_id", "metadata")
    return fields


# -- tools


def _tools(value: Any) -> Fields:
    if not isinstance(value, list):
        raise invalid("tools", "a list of tools")
    return {"tools": [_tool(tool, f"tools[{place}]") for place, tool in enumerate(value)]} if value else {}


def _tool(tool: Any, where: str) -> Fields:
    if not isinstance(tool, dict):
        raise invalid(where, "an object")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        what = f"is Anthropic's own tool '{str(kind)[:100]}', which this gateway cannot run"
        raise unsupported(where, what, "Leave it out, or define a tool with a 'name' and an 'input_schema'.")
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise invalid(f"{where}.input_schema", "a JSON schema")
    function = {"name": text_in(tool, "name", where), "parameters": schema}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    rest = {name: entry for name, entry in tool.items() if name not in _TOOL_FIELDS and entry is not None}
    return {"type": "function", "function": function, **rest}


def _tool_choice(value: Any) -> Fields:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "tool":
        name = text_in(value, "name", "tool_choice")
        fields: Fields = {"tool_choice": {"type": "function", "function": {"name": name}}}
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        fields = {"tool_choice": _TOOL_CHOICES[kind]}
    else:
        raise invalid("tool_choice", "an object with a 'type' of auto, any, tool or none")
    if value.get("disable_parallel_tool_use") is True:
        fields["parallel_tool_calls"] = False
    return fields


# -- the form of the answer


def _output_config(value: Any) -> Fields:
    if not isinstance(value, dict):
        raise invalid("output_config", "an object")
    fields: Fields = {}
    if value.get("format") is not None:
        fields |= _format(value["format"], "output_config.format")
    if value.get("effort") is not None:
        fields["reasoning_effort"] = text_in(value, "effort", "output_config")
    rest = {name: entry for name, entry in value.items() if name not in ("format", "effort")}
    return {**fields, "output_config": rest} if rest else fields


def _settle_effort(request: Fields) -> None:
    """Translators derive thinking from an effort, which must not overrule a budget or a no."""
    thinking = request.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind in ("enabled", "disabled") and "reasoning_effort" in request:
        effort = request.pop("reasoning_effort")
        request["output_config"] = {**request.get("output_config", {}), "effort": effort}


def _output_format(value: Any) -> Fields:
    return _format(value, "output_format")


def _format(value: Any, where: str) -> Fields:
    schema = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(schema, dict) or value.get("type") != "json_schema":
        raise invalid(where, "an object of type 'json_schema' with a 'schema'")
    form = {"name": _SCHEMA_NAME, "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def _elsewhere(value: Any) -> Fields:
    return {}


#: What chat completions say of a field's value.
_READERS: dict[str, Callable[[Any], Fields]] = {
    "max_tokens": _max_tokens,
    "stop_sequences": _stop_sequences,
    "stream": _stream,
    "service_tier": _service_tier,
    "metadata": _metadata,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "output_format": _output_format,
    "output_config": _output_config,
    "system": _elsewhere,
    "messages": _elsewhere,
    **dict.fromkeys(_REFUSED, _elsewhere),
}
