"""One gateway process, from its start until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket

import uvloop

from gateway.app import Gateway
from gateway.server import Server, bind
from gateway.settings import GatewayConfig
from gateway.sidecar_link import SidecarProcess

_log = logging.getLogger(__name__)

#: New objects before the collector looks at them. Requests leave few cycles: looking often finds nothing.
_GARBAGE = 20_000


def serve(config: GatewayConfig) -> None:
    """Run a gateway until SIGTERM or SIGINT; open streams are finished first."""
    listener = bind(config.host, config.port, shared=config.shared_port)
    try:
        uvloop.run(_serve(config, listener))
    finally:
        listener.close()


async def _serve(config: GatewayConfig, listener: socket.socket) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    app = Gateway(config, SidecarProcess())
    await app.start()
    server = Server(app)
    await server.listen(listener)
    # What was loaded by now lives as long as the process: no need to look through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    _log.info("gateway %s listens on %s:%d", config.gateway_id, config.host, config.port)
    await told.wait()
    _log.info("gateway %s stops; open streams may finish", config.gateway_id)
    await server.stop(config.drain_seconds)
    await app.stop()
