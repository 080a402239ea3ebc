"""Reads a Responses request into the chat completion request that asks the same.

Fields are moved by tables. What would need a memory or tools on this side is refused by name, with
what to do instead; fields that nobody here knows travel on untouched.
"""

from __future__ import annotations

from typing import Any

from gateway.surfaces.responses_checks import (
    checked,
    needed,
    objects,
    optional,
    present,
    quoted,
    unsupported,
    without,
    wrong,
)
from gateway.surfaces.responses_input import read_input

Json = dict[str, Any]

#: Fields that both ways of asking have under one name.
_SAME: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_logprobs": int,
    "parallel_tool_calls": bool,
    "user": str,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "metadata": dict,
    "service_tier": str,
    "stream": bool,
}
#: Fields that are read here; all others travel on.
_READ = frozenset(
    {
        *("input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens"),
        *("include", "stream_options", "store", "background", "truncation", "previous_response_id"),
        *("conversation", "prompt", "max_tool_calls", "context_management"),
    }
)
_NO_MEMORY = "no conversations are kept here. Send the whole conversation in 'input'."
#: What this gateway cannot do: the value that asks for nothing, and what to do instead.
_REFUSED: dict[str, tuple[object, str]] = {
    "previous_response_id": (None, f"'previous_response_id' is not supported: {_NO_MEMORY}"),
    "conversation": (None, f"'conversation' is not supported: {_NO_MEMORY}"),
    "prompt": (
        None,
        "'prompt' is not supported: no prompt templates are kept here. "
        "Send the text itself in 'instructions' and 'input'.",
    ),
    "store": (
        False,
        "'store' is not supported: responses are not kept for later retrieval. "
        "Leave it out or send false, and keep the response in your application.",
    ),
    "background": (
        False,
        "'background' is not supported: a response lives as long as its request. "
        "Leave it out or send false; for long answers use 'stream': true.",
    ),
    "truncation": (
        "disabled",
        "'truncation' is not supported: input is never shortened here. "
        "Leave it out or send 'disabled', and shorten 'input' in your application.",
    ),
    "max_tool_calls": (
        None,
        "'max_tool_calls' is not supported: the gateway runs no tools. "
        "Leave it out, and count the calls in your application.",
    ),
    "context_management": (
        [],
        "'context_management' is not supported: input is never compacted here. "
        "Leave it out, and shorten 'input' in your application.",
    ),
}
#: Fields of chat completions that would cross with what is written here, and where they are said instead.
_ELSEWHERE: dict[str, str] = {
    "messages": "'input'",
    "functions": "'tools'",
    "function_call": "'tool_choice'",
    "response_format": "'text.format'",
    "verbosity": "'text.verbosity'",
    "reasoning_effort": "'reasoning.effort'",
    "max_tokens": "'max_output_tokens'",
    "max_completion_tokens": "'max_output_tokens'",
    "logprobs": "'top_logprobs'",
    "n": "a request for each answer",
}
_LOGPROBS = "message.output_text.logprobs"
#: What may be asked to be included; the reasoning's seal always is.
_INCLUDABLE = frozenset({_LOGPROBS, "reasoning.encrypted_content"})
_TOOL_MODES = ("none", "auto", "required")
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
_CUSTOM_FIELDS = frozenset({"name", "description", "format"})


def read_request(body: Json) -> Json:
    """The chat completion request. Raises ``ApiError`` for what cannot be asked of a chat."""
    _refuse(body)
    chat = without(body, _READ)
    for name, kind in _SAME.items():
        if optional(body, name, kind) is None:
            chat.pop(name, None)
    chat["messages"] = [*_instructions(body), *read_input(body.get("input"))]
    chat.update(_text(optional(body, "text", dict) or {}))
    chat.update(_limits(body))
    _add_tools(chat, body)
    if chat.get("stream"):
        options = optional(body, "stream_options", dict) or {}
        chat["stream_options"] = {
            **without(options, frozenset({"include_obfuscation"})),
            "include_usage": True,
        }
    return chat


def _refuse(body: Json) -> None:
    for name, (harmless, text) in _REFUSED.items():
        value = body.get(name)
        # By type as well: 0 is no false.
        if value is not None and (type(value) is not type(harmless) or value != harmless):
            raise unsupported(name, text)
    for name, place in _ELSEWHERE.items():
        if body.get(name) is not None:
            text = f"'{name}' is a field of chat completions. In the Responses API, send {place} instead."
            raise unsupported(name, text)


def _instructions(body: Json) -> list[Json]:
    text = optional(body, "instructions", str)
    return [{"role": "system", "content": text}] if text else []


def _limits(body: Json) -> Json:
    """How long, how hard and how openly to answer."""
    effort = optional(optional(body, "reasoning", dict) or {}, "effort", str, "reasoning.effort")
    logprobs = _LOGPROBS in _included(body) or body.get("top_logprobs") is not None
    return present(
        max_completion_tokens=optional(body, "max_output_tokens", int),
        reasoning_effort=effort,
        logprobs=logprobs or None,
    )


def _included(body: Json) -> list[str]:
    entries: list[str] = optional(body, "include", list) or []
    for place, entry in enumerate(entries):
        param = f"include[{place}]"
        if checked(entry, str, param) not in _INCLUDABLE:
            text = (
                f"'include' names {quoted(entry)}, which needs state or tools that this gateway does not "
                f"have. Leave it out. Supported: {', '.join(sorted(_INCLUDABLE))}."
            )
            raise unsupported("include", text)
    return entries


# -- text


def _text(text: Json) -> Json:
    form = optional(text, "format", dict, "text.format")
    return present(
        verbosity=optional(text, "verbosity", str, "text.verbosity"),
        response_format=None if form is None else _format(form),
    )


def _format(form: Json) -> Json:
    kind = needed(form, "type", str, "text.format")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise wrong("text.format.type", "one of text, json_object, json_schema")
    schema = present(
        name=needed(form, "name", str, "text.format"),
        schema=needed(form, "schema", dict, "text.format"),
        description=optional(form, "description", str, "text.format.description"),
        strict=optional(form, "strict", bool, "text.format.strict"),
    )
    return {"type": "json_schema", "json_schema": schema}


# -- tools


def _add_tools(chat: Json, body: Json) -> None:
    named = objects(optional(body, "tools", list) or [], "tools")
    tools = [_tool(tool, where) for where, tool in named]
    choice = _tool_choice(body.get("tool_choice"))
    if tools:
        chat["tools"] = tools
    else:
        # Clients send these with every request, and a chat without tools must not have them.
        chat.pop("parallel_tool_calls", None)
        choice = None if choice in ("auto", "none") else choice
    if choice is not None:
        chat["tool_choice"] = choice


def _tool(tool: Json, where: str) -> Json:
    kind = needed(tool, "type", str, where)
    if kind == "function":
        return _nested(tool, kind, _FUNCTION_FIELDS, _function(tool, where))
    if kind == "custom":
        return _nested(tool, kind, _CUSTOM_FIELDS, _custom(tool, where))
    text = (
        f"'{where}' is a tool of type {quoted(kind)}, which runs on OpenAI's servers; this gateway runs no "
        "tools. Remove it, or declare a function tool and carry out its calls in your application."
    )
    raise unsupported(f"{where}.type", text)


def _nested(tool: Json, kind: str, own: frozenset[str], fields: Json) -> Json:
    """The flat form, nested. What is not the tool's own, as a cache mark, stays beside it."""
    return {**without(tool, own), "type": kind, kind: fields}


def _function(tool: Json, where: str) -> Json:
    return present(
        name=needed(tool, "name", str, where),
        description=optional(tool, "description", str, f"{where}.description"),
        parameters=optional(tool, "parameters", dict, f"{where}.parameters"),
        strict=optional(tool, "strict", bool, f"{where}.strict"),
    )


def _custom(tool: Json, where: str) -> Json:
    form = optional(tool, "format", dict, f"{where}.format")
    if form is not None and form.get("type") == "grammar":
        form = {"type": "grammar", "grammar": without(form, frozenset({"type"}))}
    return present(
        name=needed(tool, "name", str, where),
        description=optional(tool, "description", str, f"{where}.description"),
        format=form,
    )


def _tool_choice(choice: Any) -> Any:
    if choice is None:
        return None
    if isinstance(choice, dict):
        return _named_choice(choice)
    if choice not in _TOOL_MODES:
        raise wrong("tool_choice", f"one of {', '.join(_TOOL_MODES)}, or an object")
    return choice


def _named_choice(choice: Json) -> Json:
    kind = needed(choice, "type", str, "tool_choice")
    if kind == "allowed_tools":
        mode = needed(choice, "mode", str, "tool_choice")
        if mode not in ("auto", "required"):
            raise wrong("tool_choice.mode", "one of auto, required")
        tools = objects(needed(choice, "tools", list, "tool_choice"), "tool_choice.tools")
        allowed = {"mode": mode, "tools": [_chosen(tool, where) for where, tool in tools]}
        return {"type": kind, kind: allowed}
    return _chosen(choice, "tool_choice")


def _chosen(choice: Json, where: str) -> Json:
    kind = needed(choice, "type", str, where)
    if kind not in ("function", "custom"):
        text = (
            f"'{where}' chooses {quoted(kind)}; this gateway runs no tools. Choose a function or custom tool."
        )
        raise unsupported(f"{where}.type", text)
    return {"type": kind, kind: {"name": needed(choice, "name", str, where)}}
