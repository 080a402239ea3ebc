"""What a pipeline is given: the world it may touch, handed in by whoever starts the worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from policies.policy import Policy
from storage.database import Connection, Database
from storage.proposals import Proposal

T = TypeVar("T")


class PipelineError(RuntimeError):
    """A pipeline could not do its work, for a reason that a person can read and retrying cannot mend."""


@dataclass(frozen=True, kw_only=True)
class ProviderAccess:
    """How to reach one configured provider's catalogue."""

    name: str
    kind: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How evaluations are run."""

    recorded_cases: int = 30  #: live requests replayed beside the suite
    concurrency: int = 8
    timeout_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Context:
    """The world of a pipeline: one per worker process."""

    database: Database
    policy: Policy
    gateway_url: str  #: the data plane, through which every model is called
    gateway_key: str = field(repr=False)  #: a key that may pin and evaluate
    providers: tuple[ProviderAccess, ...] = ()
    price_map: Path | None = None  #: litellm's price file; None: not installed
    evaluation: EvaluationSettings = EvaluationSettings()
    poll_seconds: float = 5.0  #: between two looks at a rollout
    #: Puts the run of a proposal into the queue within a transaction; None where nothing is started.
    enqueue: Callable[[Connection, Proposal], Awaitable[str]] | None = None


class Run(Protocol):
    """One durable run. What a step returned is remembered: after a crash it is not done again.

    A step may still run twice (a crash between its effect and the memory of it), so each is idempotent
    by the run's id. Step results are small JSON.
    """

    @property
    def id(self) -> str:
        """The run's own id; the proposal's id, for runs that carry out a proposal."""

    @property
    def context(self) -> Context:
        """The world."""

    async def step(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do a piece of work once."""

    async def sleep(self, seconds: float) -> None:
        """Wait, durably."""
