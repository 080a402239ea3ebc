"""Identifiers that carry their kind and sort by time of birth: ``dep_0mc3…``.

48 bits of milliseconds and 80 random bits, as in the ULID specification, in lower-case
Crockford base 32: 26 characters. A request needs several, so that what is dear is done for many at once:
asking the system for random bits, and spelling out the time.
"""

from __future__ import annotations

import os

from storage.clock import milliseconds

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = (_ALPHABET * 8).encode()  #: for each byte the digit of its lower five bits
_RANDOM_DIGITS = 16
_IDS_PER_BLOCK = 128

_endings: list[str] = []  #: random parts that nobody has used
_birth = (-1, "")  #: a millisecond, and how it is spelled


def new_id(kind: str) -> str:
    """A fresh identifier of one kind, such as ``new_id("ro")`` for a rollout."""
    global _birth
    moment = milliseconds()
    known, spelled = _birth
    if moment != known:
        spelled = "".join(_ALPHABET[moment >> shift & 31] for shift in range(45, -1, -5))
        _birth = (moment, spelled)
    while True:
        try:
            return f"{kind}_{spelled}{_endings.pop()}"
        except IndexError:  # perhaps again: another thread may have taken them all
            _refill()


def _refill() -> None:
    block = os.urandom(_RANDOM_DIGITS * _IDS_PER_BLOCK).translate(_DIGITS).decode("ascii")
    _endings.extend(block[start : start + _RANDOM_DIGITS] for start in range(0, len(block), _RANDOM_DIGITS))


# A child would else use up the same random parts as its parent.
os.register_at_fork(after_in_child=_endings.clear)


def derived_id(kind: str, of: str) -> str:
    """The identifier of what one run makes: the same again when the run is.

    >>> derived_id("eval", "prop_0mc3")
    'eval_0mc3'
    """
    return f"{kind}_{of.partition('_')[2] or of}"
