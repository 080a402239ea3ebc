"""Names of people made unreadable, the same name always into the same word. Standard library only."""

from __future__ import annotations

import base64
import hashlib


def pseudonym(key: bytes, user: str) -> str:
    """``u_`` and 26 characters (130 bits) of keyed BLAKE2b: without the key nobody can try names out."""
    if not key:
        raise ValueError("pseudonyms need a key: without one anybody could try names out")
    name = user.encode("utf-8", "surrogatepass")
    hashed = hashlib.blake2b(name, key=hashlib.sha256(key).digest(), digest_size=20).digest()
    return "u_" + base64.b32encode(hashed)[:26].decode().lower()
