"""The gateway: which path is answered by whom, and the parts behind it, wired once.

Loads nothing of the control plane: applications are answered while everything else is down.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import orjson

from gateway.backoffice import BackOffice
from gateway.breaker import Breakers
from gateway.completions import Completions
from gateway.detectors.lexical import LexicalDetector
from gateway.embeddings import Embeddings, EmbeddingsSurface
from gateway.errors import ApiError
from gateway.feedback import FeedbackEndpoint
from gateway.http_message import Reply, Request
from gateway.keys import authenticate
from gateway.limits import Limiter
from gateway.metrics import Metrics
from gateway.models import PATH as MODELS
from gateway.models import ModelsEndpoint
from gateway.openapi import DOCUMENT
from gateway.provider_kinds import build_providers
from gateway.replies import send_error, send_json
from gateway.route_endpoint import RouteEndpoint
from gateway.services import Services
from gateway.settings import GatewayConfig
from gateway.shadow import Shadows
from gateway.sidecar.messages import Totals
from gateway.sidecar_link import SidecarLink
from gateway.surface import Surface
from gateway.surfaces.chat import ChatSurface
from gateway.surfaces.messages import MessagesSurface
from gateway.surfaces.responses import ResponsesSurface
from storage.ids import new_id
from storage.pseudonyms import pseudonym
from storage.routing import Limits, RoutingSnapshot

_LAST_SHADOWS_SECONDS = 5.0
_FEEDBACK_BYTES = 64 * 1024
_UNREAD_BYTES = 1024  #: of a body where none belongs, which needs no key
_NO_LIMITS = Limits()

Handler = Callable[[Request, Reply], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One path."""

    method: bytes
    handle: Handler
    is_open: bool = False  #: needs no key
    error: Callable[[ApiError], bytes] = ApiError.body  #: how this path writes a refusal
    max_body_bytes: int | None = None


class Gateway:
    """One gateway process's application. See ``gateway.connection.Application``."""

    def __init__(self, config: GatewayConfig, link: SidecarLink) -> None:
        self._config = config
        self._office = BackOffice(config, link)
        self.services = Services(
            config=config,
            table=self._office.table,
            journal=self._office.journal,
            providers=build_providers(config.providers.values()),
            detectors=(LexicalDetector.packaged(),),
            metrics=Metrics(),
            limiter=Limiter(),
            breakers=Breakers(),
            pseudonym=functools.lru_cache(10_000)(functools.partial(pseudonym, config.pseudonym_key)),
        )
        self._shadows = Shadows(self.services, config.shadow_concurrency)
        self._endpoints = self._wire()
        self._office.on_totals = self._take_totals
        self._office.table.on_switch = self._watch_limits

    def _wire(self) -> dict[str, _Endpoint]:
        services = self.services
        models, surface = ModelsEndpoint(services), EmbeddingsSurface()
        embeddings = Embeddings(services, self._shadows, surface)
        feedback = FeedbackEndpoint(services)
        return {
            "/v1/chat/completions": self._surface(ChatSurface()),
            "/v1/responses": self._surface(ResponsesSurface()),
            "/v1/messages": self._surface(MessagesSurface()),
            "/v1/embeddings": _Endpoint(b"POST", embeddings),
            "/v1/feedback": _Endpoint(b"POST", feedback, max_body_bytes=_FEEDBACK_BYTES),
            "/v1/route": _Endpoint(b"POST", RouteEndpoint(services)),
            MODELS: _Endpoint(b"GET", models.list_all),
            f"{MODELS}/": _Endpoint(b"GET", models.show),
            "/healthz/live": _Endpoint(b"GET", self._live, is_open=True),
            "/healthz/ready": _Endpoint(b"GET", self._ready, is_open=True),
            "/metrics": _Endpoint(b"GET", self._metrics, is_open=True),
            "/openapi.json": _Endpoint(b"GET", self._openapi, is_open=True),
        }

    def _surface(self, surface: Surface) -> _Endpoint:
        return _Endpoint(b"POST", Completions(self.services, self._shadows, surface), error=surface.error)

    # -- requests

    def admit(self, request: Request) -> int:
        """See ``gateway.connection.Application``: an unknown path, method or key has no body to read."""
        endpoint = self._find(request.path)
        if endpoint is None:
            served = ", ".join(path for path in self._endpoints if not path.endswith("/"))
            text = f"There is nothing at {request.path[:100]}. This gateway serves {served}."
            raise ApiError(404, text, code="unknown_url")
        if request.method != endpoint.method and (request.method, endpoint.method) != (b"HEAD", b"GET"):
            method = request.method.decode("latin-1")
            text = f"{request.path[:100]} takes {endpoint.method.decode()}, not {method}."
            raise ApiError(405, text, code="method_not_allowed")
        limit = self._config.max_body_bytes if endpoint.method == b"POST" else _UNREAD_BYTES
        if not endpoint.is_open:
            key = request.admitted = authenticate(self.services.snapshot(), request.headers)
            limit = _smallest(limit, key.limits.max_body_bytes)
        return _smallest(limit, endpoint.max_body_bytes)

    async def answer(self, request: Request, reply: Reply) -> None:
        """See ``gateway.connection.Application``."""
        endpoint = self._find(request.path)
        assert endpoint is not None  # else it would not have been admitted
        try:
            await endpoint.handle(request, reply)
        except ApiError as error:
            await self.refuse(request, reply, error)

    async def refuse(self, request: Request, reply: Reply, error: ApiError) -> None:
        """See ``gateway.connection.Application``."""
        endpoint = self._find(request.path)
        self.services.metrics.count_refusal(error.code or str(error.status))
        headers = [(b"x-request-id", new_id("int").encode())]
        if endpoint is not None and error.status == 405:
            headers.append((b"allow", endpoint.method))
        send_error(reply, error, headers, endpoint.error if endpoint is not None else ApiError.body)

    def _find(self, path: str) -> _Endpoint | None:
        endpoint = self._endpoints.get(path)
        if endpoint is None and path.startswith(f"{MODELS}/"):
            return self._endpoints[f"{MODELS}/"]
        return endpoint if path != f"{MODELS}/" else None

    # -- for whoever watches

    async def _live(self, request: Request, reply: Reply) -> None:
        send_json(reply, 200, b'{"status":"ok"}')

    async def _ready(self, request: Request, reply: Reply) -> None:
        """Ready while there are any routes; what is degraded is named and takes nothing out of service."""
        ready = self.services.table.snapshot is not None
        report = {"status": "ok" if ready else "no routes", **self._office.readiness()}
        send_json(reply, 200 if ready else 503, orjson.dumps(report))

    async def _metrics(self, request: Request, reply: Reply) -> None:
        text = self.services.metrics.render(
            self._office.gauges(), self.services.breakers.states(self.services.time())
        )
        reply.send(200, [(b"content-type", b"text/plain; version=0.0.4")], text)

    async def _openapi(self, request: Request, reply: Reply) -> None:
        send_json(reply, 200, DOCUMENT)

    # -- limits

    def _watch_limits(self, snapshot: RoutingSnapshot) -> None:
        """Ask for the usage of whoever has a limit, for the others cost nothing; forget old deployments."""
        self._office.watch(_limited(snapshot))
        self.services.breakers.keep(_routed(snapshot))

    def _take_totals(self, totals: Totals) -> None:
        self.services.limiter.absorb(self.services.time(), totals)

    # -- life

    async def start(self) -> None:
        """Have routes if there are any, then follow them and ship the journal."""
        for provider in self.services.providers.values():
            await provider.start()
        await self._office.start()

    async def stop(self) -> None:
        """After the last request: ship what is left and let go of everything."""
        await self._shadows.finish(_LAST_SHADOWS_SECONDS)
        for provider in self.services.providers.values():
            provider.close()
        await asyncio.gather(*(provider.finish() for provider in self.services.providers.values()))
        await self._office.close()


def _limited(snapshot: RoutingSnapshot) -> Iterator[str]:
    for key in snapshot.keys.values():
        if key.limits != _NO_LIMITS:
            yield f"key:{key.id}"
    for name, serving in snapshot.servings.items():
        if serving.limits != _NO_LIMITS:
            yield f"use_case:{name}"
        if serving.shadow.usd_per_day is not None:
            yield f"shadow:{name}"


def _routed(snapshot: RoutingSnapshot) -> frozenset[str]:
    """The deployments that may be asked."""
    arms = (arm.deployment.id for route in snapshot.routes.values() for arm in route.arms)
    fallbacks = (
        each.deployment.id
        for serving in snapshot.servings.values()
        for each in (*serving.fallbacks, serving.downgrade)
        if each is not None
    )
    return frozenset((*arms, *fallbacks))


def _smallest(limit: int, other: int | None) -> int:
    return limit if other is None else min(limit, other)
