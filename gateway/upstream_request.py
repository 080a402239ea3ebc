"""What is sent to a deployment in place of what the client sent."""

from __future__ import annotations

from typing import Any

from storage.routing import DeploymentSpec

_INSTRUCTING = frozenset({"system", "developer"})


def request_for(body: dict[str, Any], deployment: DeploymentSpec, *, stream: bool) -> dict[str, Any]:
    """The client's request, bound to a deployment: its model, its defaults, its system prompt.

    What the client says wins over the deployment's parameters. The conversation's id is ours and is
    taken out: some providers refuse metadata that they did not ask for.
    """
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
