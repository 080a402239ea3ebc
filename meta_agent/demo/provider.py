"""One simulated provider: a real process that speaks the OpenAI wire format over HTTP.

    python -m meta_agent.demo.provider --port 9101 --persona lab

Besides ``/v1`` it answers under ``/_sim``, where its behaviour can be read and changed while it
runs. It knows nothing of the gateway that calls it. Plain ASGI: the demo should measure the
product, not its stage set.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import uvicorn

from meta_agent.demo import stories, wire
from meta_agent.demo.behaviour import Behaviour, BehaviourError, Fault, draw, next_fault
from meta_agent.demo.exchange import Exchange, HangUpProtocol, Receive, Send, listen
from meta_agent.demo.personas import PERSONAS, Persona
from storage.clock import now
from storage.ids import new_id

TOKENS_PER_CHUNK = 4
#: What is counted per model: requests by how they went. ``unsafe`` ones are among the answered.
COUNTED = (
    "requests",
    "answered",
    "streamed",
    "unsafe",
    "completion_tokens",
    *(f.value for f in Fault if f.value != "none"),
)


class Provider:
    """The ASGI application: a persona, its current behaviour, and counts of what was served."""

    def __init__(self, persona: Persona, *, seed: int, api_key: str | None, released: bool = True) -> None:
        self._persona = persona
        self._seed = seed
        self._api_key = api_key
        self._behaviours = {
            model: behaviour.changed({"released": released}) for model, behaviour in persona.models.items()
        }
        self._served = {model: Counter(dict.fromkeys(COUNTED, 0)) for model in persona.models}

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(exchange)
        except wire.WireError as error:
            headers = {"retry-after": "1"} if error.status == 429 else {}
            await exchange.answer(error.body(), error.status, headers=headers)
        except BehaviourError as error:
            await exchange.answer(wire.WireError(400, str(error), kind="invalid_request_error").body(), 400)

    async def _route(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/_sim/"):
            return await self._simulate(exchange)
        self._check_key(exchange)
        match exchange.method, exchange.path:
            case "POST", "/v1/chat/completions":
                return await self._complete(exchange)
            case "GET", "/v1/models":
                if all(behaviour.down for behaviour in self._behaviours.values()):
                    return await exchange.hang_up()
                persona = self._persona
                listed = {model: each for model, each in self._behaviours.items() if each.released}
                return await exchange.answer(wire.model_list(persona.name, persona.created, listed))
            case _:
                message = f"Invalid URL ({exchange.method} {exchange.path})"
                raise wire.WireError(404, message, kind="invalid_request_error")

    def _check_key(self, exchange: Exchange) -> None:
        if self._api_key is None or exchange.headers.get("authorization") == f"Bearer {self._api_key}":
            return
        raise wire.WireError(
            401, "Incorrect API key provided.", kind="invalid_request_error", code="invalid_api_key"
        )

    # The simulator's own interface

    async def _simulate(self, exchange: Exchange) -> None:
        what, _, model = exchange.path.removeprefix("/_sim/").partition("/")
        if exchange.method == "GET" and (what, model) == ("stats", ""):
            return await exchange.answer(orjson.dumps({m: dict(c) for m, c in self._served.items()}))
        if exchange.method == "GET" and (what, model) == ("behaviour", ""):
            return await exchange.answer(orjson.dumps({m: b.as_dict() for m, b in self._behaviours.items()}))
        if what != "behaviour" or exchange.method not in ("GET", "PATCH"):
            raise wire.WireError(404, f"Nothing at {exchange.path}", kind="invalid_request_error")
        behaviour = self._behaviour(model)
        if exchange.method == "PATCH":
            changes = await exchange.read()
            if not isinstance(changes, dict):
                raise BehaviourError("the body must be an object of traits")
            behaviour = self._behaviours[model] = behaviour.changed(changes)
        return await exchange.answer(orjson.dumps(behaviour.as_dict()))

    def _behaviour(self, model: object) -> Behaviour:
        if not isinstance(model, str) or model not in self._behaviours:
            raise _no_such_model(model)
        return self._behaviours[model]

    # Chat completions

    async def _complete(self, exchange: Exchange) -> None:
        request = _check_request(await exchange.read())
        model = str(request["model"])
        behaviour = self._behaviour(request["model"])
        if not behaviour.released:
            raise _no_such_model(model)
        counts = self._served[model]
        counts["requests"] += 1
        number = counts["requests"]
        streaming = request.get("stream") is True

        def dice(knob: str) -> float:
            return draw(self._seed, model, number, knob)

        fault = next_fault(behaviour, dice, streaming=streaming)
        if fault is not Fault.NONE:
            counts[fault.value] += 1
        if await self._fail_early(exchange, fault, dice):
            return
        answer = self._answer(request, behaviour)
        # Real providers never take the same time twice; without a spread every percentile is one line.
        await asyncio.sleep(behaviour.ttft_seconds * (0.75 + 0.5 * dice("ttft")))
        if streaming:
            await self._stream(exchange, request, answer, behaviour, fault)
        elif fault is Fault.INVALID_JSON:
            await exchange.answer(wire.completion(answer)[:-40])
        else:
            await asyncio.sleep(behaviour.seconds_per_token * answer.completion_tokens)
            await exchange.answer(wire.completion(answer), headers={"x-request-id": answer.id})
        if fault is Fault.NONE:
            counts["answered"] += 1
            counts["streamed"] += streaming
            counts["completion_tokens"] += answer.completion_tokens

    async def _fail_early(self, exchange: Exchange, fault: Fault, dice: Callable[[str], float]) -> bool:
        """Carry out the faults that leave no answer; true when the request is over."""
        match fault:
            case Fault.DOWN:
                await exchange.hang_up()
            case Fault.HANG:
                await exchange.wait_for_caller_to_leave()
            case Fault.RATE_LIMIT:
                raise wire.WireError(429, "Rate limit reached.", kind="requests", code="rate_limit_exceeded")
            case Fault.ERROR if dice("status") < 0.5:
                raise wire.WireError(500, "The server had an error.", kind="server_error")
            case Fault.ERROR:
                raise wire.WireError(503, "The engine is overloaded.", kind="server_error")
            case _:
                return False
        return True

    def _answer(self, request: Mapping[str, Any], behaviour: Behaviour) -> wire.Answer:
        model = str(request["model"])
        messages: list[dict[str, object]] = request["messages"]
        prompt = "\n".join(f"{message.get('role')}: {wire.text_of(message)}" for message in messages)
        prompt_tokens = len(wire.split_tokens(prompt))
        if prompt_tokens > behaviour.context_length:
            message = f"This model's maximum context length is {behaviour.context_length} tokens."
            raise wire.WireError(400, message, kind="invalid_request_error", code="context_length_exceeded")
        conversation = (request.get("metadata") or {}).get("conversation_id", "")

        def luck(knob: str) -> float:
            return draw(self._seed, model, prompt, conversation, knob)

        unsafe = luck("unsafe") < behaviour.unsafe_rate
        self._served[model]["unsafe"] += unsafe
        turns = [wire.text_of(message) for message in messages if message.get("role") == "user"]
        text = stories.write_answer(
            turns,
            lambda constraint: luck(f"quality:{constraint}") < behaviour.quality,
            random.Random(luck("words")),
            unsafe=unsafe,
        )
        return _cut(request, text, prompt_tokens)

    async def _stream(
        self,
        exchange: Exchange,
        request: Mapping[str, Any],
        answer: wire.Answer,
        behaviour: Behaviour,
        fault: Fault,
    ) -> None:
        deltas = wire.group(wire.split_tokens(answer.text), TOKENS_PER_CHUNK)
        middle = len(deltas) // 2
        await exchange.start_stream()
        await exchange.write(wire.chunk(answer, {"role": "assistant", "content": ""}))
        for position, delta in enumerate(deltas):
            if position == middle and fault is Fault.HALF_STREAM:
                await exchange.hang_up()
                return
            if position == middle and fault is Fault.INVALID_JSON:
                await exchange.write(wire.event(b'{"id": "chatcmpl-broken", "choices": [{'))
            await exchange.write(wire.chunk(answer, {"content": delta}))
            await asyncio.sleep(behaviour.seconds_per_token * TOKENS_PER_CHUNK)
        await exchange.write(wire.chunk(answer, {}, answer.finish_reason))
        if (request.get("stream_options") or {}).get("include_usage"):
            await exchange.write(wire.usage_chunk(answer))
        await exchange.write(wire.DONE, last=True)


def _no_such_model(model: object) -> wire.WireError:
    return wire.WireError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        kind="invalid_request_error",
        code="model_not_found",
    )


def _check_request(request: object) -> dict[str, Any]:
    """The parts of a chat request that the simulator relies on, or the error that says what is wrong."""
    problem = ""
    if not isinstance(request, dict):
        problem = "The body must be a JSON object."
    elif not isinstance(request.get("model"), str):
        problem = "you must provide a model parameter"
    elif not isinstance(messages := request.get("messages"), list) or not messages:
        problem = "'messages' must be a non-empty array."
    elif not all(isinstance(message, dict) and "role" in message for message in messages):
        problem = "Each of 'messages' must be an object with a role."
    elif request.get("n") not in (None, 1):
        problem = "Only n=1 is supported."
    elif not all(isinstance(request.get(key) or {}, dict) for key in ("metadata", "stream_options")):
        problem = "'metadata' and 'stream_options' must be objects."
    if problem or not isinstance(request, dict):
        raise wire.WireError(400, problem, kind="invalid_request_error")
    return request


def _cut(request: Mapping[str, Any], text: str, prompt_tokens: int) -> wire.Answer:
    """Make the answer, shortened to the token limit that the caller set."""
    tokens = wire.split_tokens(text)
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    stopped = isinstance(limit, int) and limit < len(tokens)
    kept = tokens[:limit] if stopped else tokens
    return wire.Answer(
        id=new_id("chatcmpl").replace("_", "-"),
        model=str(request["model"]),
        created=int(now().timestamp()),
        text="".join(kept),
        finish_reason="length" if stopped else "stop",
        prompt_tokens=prompt_tokens,
        completion_tokens=len(kept),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one persona until told to stop."""
    parser = argparse.ArgumentParser(prog="meta_agent.demo.provider", description="A simulated provider.")
    parser.add_argument("--persona", choices=sorted(PERSONAS), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the persona's own; 0 takes any free port")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--api-key", help="the key that callers must show; default: none needed")
    parser.add_argument("--unreleased", action="store_true", help="list no model until told to")
    options = parser.parse_args(arguments)
    persona = PERSONAS[options.persona]
    port = persona.port if options.port is None else options.port
    try:
        listener = listen(options.host, port)
    except OSError as error:
        where = f"{options.host}:{port}"
        print(f"provider {persona.name}: cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return 1
    host, port = listener.getsockname()[:2]
    print(f"provider {persona.name} on http://{host}:{port}/v1 with {', '.join(persona.models)}", flush=True)
    config = uvicorn.Config(
        Provider(persona, seed=options.seed, api_key=options.api_key, released=not options.unreleased),
        http=HangUpProtocol,
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,  # as long as real providers: pooled connections must not die young
        timeout_graceful_shutdown=1,
    )
    # uvicorn raises the signal again once it has shut down: being told to stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
