"""The gateway as an ASGI application, and the process that serves it.

Wires the parts, dispatches paths and keeps the background tasks. Loads nothing of the control plane:
applications are answered while everything else is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Coroutine
from typing import Any

import orjson
import uvicorn

from gateway.asgi import Receive, Scope, Send, send_error, send_json
from gateway.chat import ChatEndpoint
from gateway.detectors.lexical import LexicalDetector
from gateway.errors import ApiError, ClientGoneError
from gateway.feedback import FeedbackEndpoint
from gateway.http_server import LimitedHttp
from gateway.journal import Journal
from gateway.log_shipper import LogShipper
from gateway.metrics import Metrics
from gateway.models import ModelsEndpoint
from gateway.provider_kinds import build_providers
from gateway.route_table import RouteTable
from gateway.services import Services
from gateway.settings import GatewayConfig
from gateway.shadow import Shadows
from storage.database import Database

_log = logging.getLogger(__name__)

_MODELS = "/v1/models"
_METHODS = {
    "/v1/chat/completions": "POST",
    "/v1/feedback": "POST",
    _MODELS: "GET",
    "/healthz/live": "GET",
    "/healthz/ready": "GET",
    "/metrics": "GET",
}
_LAST_SHIPMENT_SECONDS = 5.0


class Gateway:
    """One gateway process's application."""

    def __init__(self, config: GatewayConfig, database: Database) -> None:
        self._config = config
        self._journal = Journal(config.spool_dir, self._notice)
        self._shipper = LogShipper(
            self._journal, database, seconds=config.flush_seconds, rows=config.flush_rows
        )
        self._table = RouteTable(database, config.spool_dir, config.gateway_id, config.route_poll_seconds)
        self._services = Services(
            config=config,
            table=self._table,
            journal=self._journal,
            providers=build_providers(config.providers.values()),
            detectors=(LexicalDetector.packaged(),),
            metrics=Metrics(),
        )
        self._shadows = Shadows(self._services, config.shadow_concurrency)
        self._chat = ChatEndpoint(self._services, self._shadows)
        self._feedback = FeedbackEndpoint(self._services)
        self._models = ModelsEndpoint(self._services)
        self._tasks: list[asyncio.Task[None]] = []

    def _notice(self) -> None:
        self._shipper.notice()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    # -- requests

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if path == "/v1/chat/completions" and method == "POST":
            await self._chat(headers, receive, send)
            return
        try:
            await self._other(path, method, headers, receive, send)
        except ApiError as error:
            self._services.metrics.count_refusal(error.code or str(error.status))
            await send_error(send, error)
        except ClientGoneError:
            self._services.metrics.count_refusal("client_gone")

    async def _other(
        self, path: str, method: str, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        _check_path(path, method)
        match path:
            case "/v1/feedback":
                await self._feedback(headers, receive, send)
            case "/healthz/live":
                await send_json(send, 200, b'{"status":"ok"}')
            case "/healthz/ready":
                await self._ready(send)
            case "/metrics":
                await self._metrics(send)
            case "/v1/models":
                await self._models.list_all(headers, send)
            case _:
                await self._models.show(headers, path.removeprefix(f"{_MODELS}/"), send)

    async def _ready(self, send: Send) -> None:
        """Ready while there is any snapshot; what is degraded is named and takes nothing out of service.

        Why it is degraded stands in the log: anybody may ask here, and the reasons name hosts and paths.
        """
        snapshot = self._table.snapshot
        report = {
            "status": "ok" if snapshot else "no routes",
            "routes_version": snapshot.version if snapshot else None,
            "routes_age_seconds": self._table.age_seconds,
            "routes_failing": self._table.failing is not None,
            "journal_failing": self._journal.failing is not None,
            "journal_lost": self._journal.lost,
            "journal_segments_waiting": len(self._journal.closed),
            "database_failing": self._shipper.failing is not None,
        }
        await send_json(send, 200 if snapshot else 503, orjson.dumps(report))

    async def _metrics(self, send: Send) -> None:
        snapshot, journal, shipper = self._table.snapshot, self._journal, self._shipper
        age = self._table.age_seconds
        text = self._services.metrics.render(
            [
                (
                    "meta_agent_journal_open_rows",
                    "Rows not shipped yet in the open segment.",
                    journal.open_rows,
                ),
                (
                    "meta_agent_journal_segments",
                    "Closed segments that wait to be shipped.",
                    len(journal.closed),
                ),
                ("meta_agent_journal_write_failures", "Rows that the disk refused.", journal.failures),
                ("meta_agent_journal_lost", "Rows that found no place at all.", journal.lost),
                ("meta_agent_journal_shipped", "Rows stored in the database.", shipper.shipped),
                ("meta_agent_journal_torn", "Incomplete lines that were skipped.", shipper.torn),
                ("meta_agent_journal_refused", "Rows that the database refused.", shipper.refused),
                ("meta_agent_routes_version", "Version served.", snapshot.version if snapshot else 0),
                ("meta_agent_routes_age_seconds", "Since the routes were read.", -1 if age is None else age),
            ]
        )
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain; version=0.0.4")],
        }
        await send(start)
        await send({"type": "http.response.body", "body": text})

    # -- life

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def start(self) -> None:
        """Have routes if there are any, then follow them and ship the journal."""
        await self._table.start()
        self._tasks = [_spawn(self._table.run()), _spawn(self._shipper.run())]

    async def stop(self) -> None:
        """After the last request: ship what is left and let go of everything."""
        await self._shadows.finish(_LAST_SHIPMENT_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._shipper.finish(_LAST_SHIPMENT_SECONDS)
        for provider in self._services.providers.values():
            provider.close()
        self._journal.close()


def _check_path(path: str, method: str) -> None:
    known = _METHODS.get(path) or ("GET" if path.startswith(f"{_MODELS}/") else None)
    if known is None:
        text = f"There is nothing at {path}. This gateway serves {', '.join(sorted(_METHODS))}."
        raise ApiError(404, text, code="unknown_url")
    if method != known and not (method == "HEAD" and known == "GET"):
        raise ApiError(405, f"{path} takes {known}, not {method}.", code="method_not_allowed")


def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(work)
    task.add_done_callback(_complain)
    return task


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.critical("a background task of the gateway died", exc_info=task.exception())


def create_app(config: GatewayConfig, database: Database) -> Gateway:
    """The application. Takes the spool directory for itself; a second process on it is refused."""
    return Gateway(config, database)


def server_config(app: Gateway, config: GatewayConfig) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        loop="uvloop",
        http=LimitedHttp,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody asks where a client is
        timeout_graceful_shutdown=config.drain_seconds,
        timeout_keep_alive=75,
    )


def serve(config: GatewayConfig) -> None:
    """Run a gateway process until it is told to stop; open streams are finished first."""
    database = Database(config.database_url)
    app = create_app(config, database)
    server = uvicorn.Server(server_config(app, config))
    # What was loaded by now lives as long as the process: no need to look through it again and again.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
