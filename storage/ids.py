"""Identifiers that carry their kind and sort by time of birth: ``dep_0mc3…``.

48 bits of milliseconds and 80 random bits, as in the ULID specification, in lower-case
Crockford base 32: 26 characters.
"""

from __future__ import annotations

import os

from storage.clock import now

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(kind: str) -> str:
    """A fresh identifier of one kind, such as ``new_id("ro")`` for a rollout."""
    value = int(now().timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return f"{kind}_" + "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def derived_id(kind: str, of: str) -> str:
    """The identifier of what one run makes: the same again when the run is.

    >>> derived_id("eval", "prop_0mc3")
    'eval_0mc3'
    """
    return f"{kind}_{of.partition('_')[2] or of}"
