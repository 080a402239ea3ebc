"""How a part of the sidecar says that it fails: once for each reason, and without quoting rows."""

from __future__ import annotations

import logging

from storage.database import DatabaseUnavailable
from storage.interactions import words_of


def warn_once(log: logging.Logger, consequence: str, error: Exception, known: str | None) -> str:
    """The words of a failure, said in the log unless they are ``known`` from the last one.

    What a database says of a statement quotes rows; only a fault of our own is told in full.
    """
    words = words_of(error)
    if words != known:
        ours = not hasattr(error, "orig") and not isinstance(error, DatabaseUnavailable)
        log.warning("%s: %s", consequence, words, exc_info=error if ours else None)
    return words
