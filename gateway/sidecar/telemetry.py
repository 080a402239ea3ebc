"""Exports what is shipped to an OpenTelemetry collector, over OTLP/HTTP, where one is configured.

On a thread of its own and from a queue with an end: a collector that is slow, away or wrong loses
spans, which are counted, and never holds up the log. OpenTelemetry itself is loaded only then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gateway.settings import TelemetryConfig

if TYPE_CHECKING:
    from gateway.sidecar.otlp import Collector

_log = logging.getLogger(__name__)

_QUEUE_BYTES = 32 * 1024 * 1024  #: of rows that wait for the collector; older ones are not exported
_SPANS_AT_ONCE = 512
_LAST_SECONDS = 1.5  #: for what is left when the gateway stops; spans are worth no longer wait


class Telemetry:
    """The task that exports rows as spans and measurements."""

    def __init__(self, config: TelemetryConfig, gateway_id: str, providers: Mapping[str, str]) -> None:
        self._config = config
        self._gateway_id = gateway_id
        self._providers = providers
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._something = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "telemetry")
        self._collector: Collector | None = None
        self._failing = False
        self.exported = 0  #: spans that the collector took
        self.not_exported = 0  #: spans that it did not, or that found no place in the queue

    def offer(self, interactions: Sequence[bytes]) -> None:
        """Export these when there is time."""
        self._queue.extend(interactions)
        self._size += sum(map(len, interactions))
        while self._size > _QUEUE_BYTES:
            self._size -= len(self._queue.popleft())
            self.not_exported += 1
        self._something.set()

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            await self._export_all()

    async def finish(self) -> None:
        """Export what is left, unless the collector is in trouble, and let go of it."""
        if not self._failing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await self._export_all()
        closed = self._let_go()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await closed.wait()
        self.not_exported += len(self._queue)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _let_go(self) -> asyncio.Event:
        """Close the collector on a thread of its own: one that hangs keeps neither us nor the process."""
        closed = asyncio.Event()
        if self._collector is None:
            closed.set()
            return closed
        loop, collector = asyncio.get_running_loop(), self._collector

        def close() -> None:
            collector.close()
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="telemetry-close", daemon=True).start()
        return closed

    async def _export_all(self) -> None:
        while self._queue:
            rows = [self._queue.popleft() for _ in range(min(len(self._queue), _SPANS_AT_ONCE))]
            self._size -= sum(map(len, rows))
            await asyncio.get_running_loop().run_in_executor(self._thread, self._export, rows)

    def _export(self, rows: list[bytes]) -> None:
        """On the thread, which goes on even when nobody waits for it any more."""
        taken = self._send(rows)
        self.exported += taken
        self.not_exported += len(rows) - taken
        self._note(taken == len(rows))

    def _send(self, rows: list[bytes]) -> int:
        """How many of these the collector took."""
        try:
            if self._collector is None:
                from gateway.sidecar.otlp import Collector

                self._collector = Collector(self._config, self._gateway_id, self._providers)
            return self._collector.export(rows)
        except Exception:
            _log.exception("telemetry: %d spans could not be exported", len(rows))
            return 0

    def _note(self, success: bool) -> None:
        if success == self._failing:
            words = "takes spans again" if success else "does not take all spans, they are dropped"
            _log.warning("telemetry: the collector at %s %s", self._config.endpoint, words)
        self._failing = not success
