"""Makes look-alike text equal before it is searched: width, case, accents, invisible characters.

Each character is folded by itself (compatibility decomposition, case folding, then marks and
invisible characters dropped). Folding a text piece by piece therefore gives the same as folding it
whole, which is what lets a stream be searched without waiting for its end.
"""

from __future__ import annotations

import unicodedata

#: Marks that combine with the letter before them, and characters that no reader sees.
_DROPPED = frozenset({"Mn", "Me", "Cf"})


class _Folding(dict[int, str]):
    """Code point to its folded form, worked out when first met."""

    def __missing__(self, code: int) -> str:
        decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", chr(code)).casefold())
        folded = "".join(c for c in decomposed if unicodedata.category(c) not in _DROPPED)
        self[code] = folded
        return folded


_FOLDING = _Folding()


def fold(text: str) -> str:
    """The folded text.

    >>> fold("Ｂo\\u200bMB Café")
    'bomb cafe'
    """
    return text.lower() if text.isascii() else text.translate(_FOLDING)


def original_position(text: str, folded_position: int) -> int:
    """Where in the text the folded character at a position comes from.

    >>> original_position("a\\u200bbc", 1)
    2
    """
    if text.isascii():
        return folded_position
    folded_length = 0
    for position, character in enumerate(text):
        folded_length += len(_FOLDING[ord(character)])
        if folded_length > folded_position:
            return position
    return len(text)
