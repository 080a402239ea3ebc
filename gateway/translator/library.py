"""litellm, loaded so that it keeps to itself: no network, no retries, no callbacks, no words about calls."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import ssl
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import httpx

from gateway.translator.exchanges import Wires
from gateway.translator.handover import Upstream

#: Read by the library while it is imported. Its price map and header lists are the packaged ones.
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_MODE": "PRODUCTION",  # otherwise it reads .env files from wherever it is started
    "LITELLM_LOG": "CRITICAL",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "AIOHTTP_CONNECTOR_LIMIT": "100000",  # the worker's pool limits the calls
    "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "100000",
}


class Library:
    """The functions of litellm that the translator calls."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        os.environ.update(_ENVIRONMENT)
        import litellm

        self._litellm: Any = litellm
        self._owned = _owned_names(litellm)
        _quieten(litellm)
        _lay_wires(litellm, upstreams)

    async def complete(self, **arguments: Any) -> Any:
        """A chat completion: the library's answer, or its stream."""
        return await self._litellm.acompletion(**arguments)

    async def warm_up(self, model: str) -> None:
        """Load what a first call loads. Nothing is sent: outside of an exchange there is no wire."""
        messages = [{"role": "user", "content": "hello"}]
        with contextlib.suppress(Exception):
            await self.complete(model=model, messages=messages, api_key="none", max_retries=0, num_retries=0)

    async def embed(self, **arguments: Any) -> Any:
        """Embeddings."""
        return await self._litellm.aembedding(**arguments)

    def owns(self, name: str) -> bool:
        """Whether an argument of this name controls the library, rather than the model."""
        return name in self._owned


def _owned_names(litellm: Any) -> frozenset[str]:
    from litellm.types.utils import all_litellm_params

    functions: tuple[Callable[..., Any], ...] = (litellm.acompletion, litellm.completion, litellm.embedding)
    named = {name for function in functions for name in inspect.signature(function).parameters}
    return frozenset({*named, *all_litellm_params, *litellm.OPENAI_CHAT_COMPLETION_PARAMS})


def _quieten(litellm: Any) -> None:
    litellm.suppress_debug_info = True  # it would print, to standard output
    litellm.redact_messages_in_exceptions = True
    litellm.turn_off_message_logging = True
    litellm.disable_streaming_logging = True
    litellm.telemetry = False
    litellm.drop_params = True  # a route may change models; what the new one does not know is left out
    litellm.num_retries = 0
    litellm.callbacks = []
    _stop_bookkeeping()
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai", "aiohttp"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)  # its messages hold prompts
        logger.propagate = False


def _stop_bookkeeping() -> None:
    """After each call it would copy, redact and price it for callbacks, of which there are none."""
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    def forget(async_coroutine: Coroutine[Any, Any, Any]) -> None:
        async_coroutine.close()

    worker: Any = GLOBAL_LOGGING_WORKER
    worker.ensure_initialized_and_enqueue = forget


def _lay_wires(litellm: Any, upstreams: Mapping[str, Upstream]) -> None:
    """Every asynchronous client that the library makes, also those of SDKs, asks this for its transport."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    handler: Any = AsyncHTTPHandler

    def make(authorities: ssl.SSLContext | None) -> httpx.AsyncBaseTransport:
        transport: httpx.AsyncBaseTransport = original(ssl_context=authorities)
        return transport

    original = handler.create_aiohttp_transport
    wires = Wires(upstreams, make)

    def lead(**_ignored: Any) -> Wires:
        return wires

    handler.create_async_transport = staticmethod(lead)
    handler._create_async_transport = staticmethod(lead)
    # Clients that were made while the library was imported have other transports.
    litellm.module_level_aclient = AsyncHTTPHandler()
    litellm.in_memory_llm_clients_cache.flush_cache()
