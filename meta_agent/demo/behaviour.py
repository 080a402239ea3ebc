"""How a simulated model behaves: its quality, speed, price and vices, as numbers that can be changed.

Pure. Every outcome is drawn from a digest, so that the same seed plays the same demo. Quality and
safety hang on the prompt (asking again gives the same answer); faults hang on a request counter
(asking again may work). It knows neither HTTP nor what a story is.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum


class BehaviourError(ValueError):
    """A change of behaviour that makes no sense."""


class Fault(StrEnum):
    """What goes wrong with one request, on the wire."""

    NONE = "none"
    DOWN = "down"  #: the connection closes without an answer
    HANG = "hang"  #: no answer, ever
    RATE_LIMIT = "rate_limit"  #: HTTP 429 with retry-after
    ERROR = "error"  #: HTTP 500 or 503
    INVALID_JSON = "invalid_json"  #: HTTP 200 with a body that cannot be parsed
    HALF_STREAM = "half_stream"  #: a stream that is cut in its middle


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One model's character. Rates are shares of requests, in 0..1."""

    quality: float = 1.0  #: probability that one constraint of the prompt is met
    ttft_seconds: float = 0.02  #: time to the first token
    seconds_per_token: float = 0.001
    error_rate: float = 0.0
    unsafe_rate: float = 0.0  #: share of prompts answered with a harmful phrase
    half_stream_rate: float = 0.0  #: streamed requests only
    hang_rate: float = 0.0
    invalid_json_rate: float = 0.0
    rate_limit_rate: float = 0.0
    prompt_usd: str = "0.000001"  #: USD per token, a decimal string
    completion_usd: str = "0.000002"
    context_length: int = 32768
    down: bool = False
    released: bool = True  #: before its release a model is neither listed nor answered

    def changed(self, changes: Mapping[str, object]) -> Behaviour:
        """The same character with some traits changed.

        >>> Behaviour().changed({"error_rate": 0.5}).error_rate
        0.5
        >>> Behaviour().changed({"eror_rate": 0.5})
        Traceback (most recent call last):
        ...
        meta_agent.demo.behaviour.BehaviourError: unknown trait 'eror_rate'
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        read: dict[str, object] = {}
        for name, value in changes.items():
            if name not in defaults:
                raise BehaviourError(f"unknown trait '{name}'")
            read[name] = _read_trait(name, value, defaults[name])
        return dataclasses.replace(self, **read)  # type: ignore[arg-type]  # checked by _read_trait

    def as_dict(self) -> dict[str, object]:
        """Plain values, as the simulator's own API shows them."""
        return dataclasses.asdict(self)


def _read_trait(name: str, value: object, default: object) -> object:
    if isinstance(default, bool):
        return _read_bool(name, value)
    if isinstance(default, str):
        return _read_price(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BehaviourError(f"{name} must be a number, not {value!r}")
    if isinstance(default, int):
        if not isinstance(value, int) or value < 1:
            raise BehaviourError(f"{name} must be a whole number above 0, not {value!r}")
        return value
    limit = 600.0 if "seconds" in name else 1.0
    if not 0 <= value <= limit:
        raise BehaviourError(f"{name} must lie in 0..{limit:g}, not {value!r}")
    return float(value)


def _read_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BehaviourError(f"{name} must be true or false, not {value!r}")
    return value


def _read_price(name: str, value: object) -> str:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal("NaN")
    if not price.is_finite() or price < 0:
        raise BehaviourError(f"{name} must be a price in USD per token, not {value!r}")
    return f"{price:f}"


def draw(*parts: object) -> float:
    """A number in 0..1 that depends on the parts and on nothing else.

    >>> draw("seed", 1) == draw("seed", 1) != draw("seed", 2)
    True
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    # 53 bits are what a float holds exactly: more could round up to 1.0.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def next_fault(behaviour: Behaviour, dice: Callable[[str], float], *, streaming: bool) -> Fault:
    """What goes wrong with a request, if anything; ``dice`` gives a number in 0..1 per knob."""
    if behaviour.down:
        return Fault.DOWN
    rates = (
        (Fault.HANG, behaviour.hang_rate),
        (Fault.RATE_LIMIT, behaviour.rate_limit_rate),
        (Fault.ERROR, behaviour.error_rate),
        (Fault.INVALID_JSON, behaviour.invalid_json_rate),
        (Fault.HALF_STREAM, behaviour.half_stream_rate if streaming else 0.0),
    )
    return next((fault for fault, rate in rates if dice(fault) < rate), Fault.NONE)
