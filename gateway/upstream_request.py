"""What is sent to a deployment in place of what the client sent."""

from __future__ import annotations

from typing import Any

from gateway.surfaces.chat import ChatSurface
from storage.routing import DeploymentSpec

_INSTRUCTING = frozenset({"system", "developer"})
#: Kinds whose servers refuse a request for a field that they do not know.
_STRICT = frozenset({"openai", "google"})
#: What only Anthropic's servers know, in a request and in a message.
_FOREIGN_FIELDS = frozenset(
    {
        *("thinking", "top_k", "output_config", "cache_control", "context_management", "inference_geo"),
        *("betas", "billing_policy", "compaction", "diagnostics", "fallback_credit_token", "fallbacks"),
        *("speed", "thread", "user_profile_id", "workspace_id"),
    }
)
_FOREIGN_IN_MESSAGES = frozenset({"thinking_blocks", "reasoning_content", "cache_control"})
_EFFORTS = {"max": "high"}  #: words for an effort that OpenAI has not


def request_for(
    body: dict[str, Any],
    deployment: DeploymentSpec,
    *,
    stream: bool,
    kind: str | None = None,
    surface: str = ChatSurface.name,
) -> dict[str, Any]:
    """The client's request, bound to a deployment: its model, its defaults, its system prompt.

    What the client says wins over the deployment's parameters. The conversation's id is ours and is
    taken out: some providers refuse metadata that they did not ask for. A request that came in another
    form than chat completions keeps what a strict provider would refuse it for to itself.
    """
    if kind in _STRICT and surface != ChatSurface.name and "messages" in body:
        body = _strictly(body, kind)
    request = {**deployment.parameters, **body, "model": deployment.model}
    messages = body.get("messages", ())  # embeddings have none
    if deployment.system_prompt and messages and not any(each["role"] in _INSTRUCTING for each in messages):
        request["messages"] = [{"role": "system", "content": deployment.system_prompt}, *messages]
    metadata = body.get("metadata")
    if metadata and "conversation_id" in metadata:
        rest = {name: value for name, value in metadata.items() if name != "conversation_id"}
        if rest:
            request["metadata"] = rest
        else:
            del request["metadata"]
    if stream:
        request["stream"] = True
        request["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        request.pop("stream", None)
        request.pop("stream_options", None)
    return request


# -- for strict providers


def _strictly(body: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """The request without what no chat completion has."""
    request = _without(body, _FOREIGN_FIELDS)
    effort = request.get("reasoning_effort") or _effort_of(body)
    if effort is not None:
        request["reasoning_effort"] = _EFFORTS.get(effort, effort)
    if kind == "openai" and "max_tokens" in request:  # the older name, which newer models refuse
        request.setdefault("max_completion_tokens", request.pop("max_tokens"))
    if not request.get("store"):
        request.pop("metadata", None)  # labels of what is stored
    request["messages"] = [_message(message) for message in body["messages"]]
    if isinstance(request.get("tools"), list):
        request["tools"] = [_only_own(tool) for tool in request["tools"]]
    return request


def _effort_of(body: dict[str, Any]) -> Any:
    """The effort that was set aside for a budget of thinking, which only Anthropic's servers know."""
    config, thinking = body.get("output_config"), body.get("thinking")
    if not isinstance(config, dict) or (isinstance(thinking, dict) and thinking.get("type") == "disabled"):
        return None
    effort = config.get("effort")
    return effort if isinstance(effort, str) else None


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = _without(message, _FOREIGN_IN_MESSAGES)
    if isinstance(kept.get("content"), list):
        kept["content"] = [_unmarked(part) for part in kept["content"]]
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_only_own(call) for call in kept["tool_calls"]]
    return kept


def _unmarked(part: Any) -> Any:
    return _without(part, _FOREIGN_IN_MESSAGES) if isinstance(part, dict) else part


def _only_own(entry: Any) -> Any:
    """A tool or a call: everything that belongs to it stands below its type."""
    if not isinstance(entry, dict):
        return entry
    return {name: value for name, value in entry.items() if name in ("id", "type", entry.get("type"))}


def _without(source: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in source.items() if name not in names}
