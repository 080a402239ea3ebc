"""Calls one exact release through the gateway, as applications would, and times the answer.

Tells apart whose fault a failure is: the model's counts against it, the way there (the gateway is
restarting, the key is wrong) only means that nothing was measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import httpx

_PURPOSE = {"x-meta-agent-purpose": "evaluation"}
_LONGEST_WORDS = 300
_LONGEST_PAUSE = 5.0
_UNKNOWN_RELEASE_SECONDS = 10.0
#: The gateway's names for a provider's faults begin so. Its own limit of connections and a wrong key
#: of ours are among them, and are no model's fault.
_UPSTREAM, _OURS = "upstream_", frozenset({"upstream_busy", "upstream_credentials"})


class Fault(StrEnum):
    """Why there is no answer."""

    MODEL = "model"  #: the deployment failed; counts against it
    WAY = "way"  #: it was never asked, or nobody can tell


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one call."""

    text: str = ""
    finish_reason: str | None = None
    latency_ms: float | None = None  #: of the attempt that was answered
    cost_usd: Decimal | None = None
    attempts: int = 1
    fault: Fault | None = None
    error: str | None = None

    @property
    def blocked(self) -> bool:
        """A detector stopped it: the answer was not safe."""
        return self.finish_reason == "content_filter"


@dataclass(frozen=True)
class _Failure:
    fault: Fault
    words: str
    retry: bool
    retry_after: float | None = None
    patience_seconds: float | None = None  #: less than usual


@dataclass
class GatewayClient(AbstractAsyncContextManager["GatewayClient"]):
    """The gateway, seen from an evaluation."""

    url: str
    key: str = field(repr=False)
    timeout_seconds: float = 60.0
    concurrency: int = 8
    model_attempts: int = 3  #: as many as applications' own clients make
    patience_seconds: float = 45.0  #: for the way to the gateway: longer than it takes to restart

    def __post_init__(self) -> None:
        """Open the pool; nothing is sent yet."""
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {self.key}", **_PURPOSE},
            timeout=httpx.Timeout(self.timeout_seconds, connect=5.0, pool=None),
            trust_env=False,
        )
        self._places = asyncio.Semaphore(self.concurrency)
        self._away_since: float | None = None  #: nobody came through since then

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def ask(self, use_case: str, release_id: str, messages: Sequence[Mapping[str, Any]]) -> Answer:
        """The release's answer, after as many attempts as it deserves. Never raises for a failed call."""
        body = {"model": f"{use_case}@{release_id}", "messages": [dict(each) for each in messages]}
        async with self._places:
            return await self._insist(body)

    async def _insist(self, body: Mapping[str, Any]) -> Answer:
        began = time.monotonic()
        attempt = model_failures = 0
        while True:
            attempt += 1
            outcome = await self._attempt(body, attempt)
            if isinstance(outcome, Answer):
                self._away_since = None
                return outcome
            model_failures += outcome.fault is Fault.MODEL
            exhausted = self._is_out_of_patience(outcome, began) or model_failures >= self.model_attempts
            if exhausted or not outcome.retry:
                return Answer(attempts=attempt, fault=outcome.fault, error=outcome.words)
            pause = 0.2 * 2 ** min(attempt, 4) if outcome.retry_after is None else outcome.retry_after
            await asyncio.sleep(min(pause, _LONGEST_PAUSE))

    def _is_out_of_patience(self, failure: _Failure, began: float) -> bool:
        """Whether the way has been closed for long enough, for this call or for all of them: the calls
        that queue behind a closed door do not each wait anew."""
        if failure.fault is Fault.MODEL:
            self._away_since = None
            return False
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        patience = self.patience_seconds if failure.patience_seconds is None else failure.patience_seconds
        return now - began >= patience or now - self._away_since >= self.patience_seconds

    async def _attempt(self, body: Mapping[str, Any], attempt: int) -> Answer | _Failure:
        started = time.perf_counter()
        try:
            response = await self._http.post(f"{self.url.rstrip('/')}/v1/chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return _Failure(Fault.WAY, f"the gateway cannot be reached: {error}", retry=True)
        except httpx.TimeoutException:
            # The gateway has shorter limits of its own; whoever is silent for this long is behind it.
            words = f"no answer within {self.timeout_seconds:g} seconds"
            return _Failure(Fault.MODEL, words, retry=False)
        except httpx.HTTPError as error:
            words = f"the connection to the gateway broke: {error or type(error).__name__}"
            return _Failure(Fault.WAY, words, retry=True)
        latency_ms = (time.perf_counter() - started) * 1000
        if response.status_code != 200:
            return _failure(response)
        return _answer(response, latency_ms, attempt)


def _failure(response: httpx.Response) -> _Failure:
    """Whose fault an error answer is, and whether it may pass."""
    status, error = response.status_code, _error(response)
    code = str(error.get("code") or "")
    words = f"HTTP {status}: {error.get('message') or 'no reason given'}"[:_LONGEST_WORDS]
    retry_after = _seconds(response.headers.get("retry-after"))
    if code.startswith(_UPSTREAM) and code not in _OURS:
        return _Failure(Fault.MODEL, words, status in (429, 502, 503), retry_after)
    if code == "upstream_credentials":
        return _Failure(Fault.WAY, words, retry=False)
    if status == 404:
        # The release was made a moment ago, and gateways read routes every second or so.
        return _Failure(Fault.WAY, words, True, patience_seconds=_UNKNOWN_RELEASE_SECONDS)
    return _Failure(Fault.WAY, words, status == 429 or status >= 500, retry_after)


def _error(response: httpx.Response) -> Mapping[str, Any]:
    document = _json(response)
    error = document.get("error") if isinstance(document, Mapping) else None
    return error if isinstance(error, Mapping) else {}


def _json(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _answer(response: httpx.Response, latency_ms: float, attempt: int) -> Answer | _Failure:
    try:
        choice = _json(response)["choices"][0]
        text, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        return _Failure(Fault.MODEL, "the answer is no chat completion", retry=False)
    return Answer(
        text=text if isinstance(text, str) else "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        latency_ms=latency_ms,
        cost_usd=_dollars(response.headers.get("x-meta-agent-cost-usd")),
        attempts=attempt,
    )


def _dollars(header: str | None) -> Decimal | None:
    try:
        cost = Decimal(header) if header else None
    except InvalidOperation:
        return None
    return cost if cost is not None and cost.is_finite() and 0 <= cost < 10**6 else None


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isascii() and header.isdigit() else None
