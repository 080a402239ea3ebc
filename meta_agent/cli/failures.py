"""How a command ends: the exit codes that scripts rely on, and the failure that carries one.

Raised anywhere below the command line's edge; the edge prints the sentence and never a traceback.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

#: Hosts that are this machine.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})  # noqa: S104  # compared, never bound


class Exit(IntEnum):
    """What a process says when it ends."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3  #: by policy, or by a person
    WAITING = 4  #: for a person's approval
    UNREACHABLE = 5
    INTERRUPTED = 130  #: what shells expect after Ctrl-C


class Failure(Exception):  # noqa: N818  # an answer to the caller, not a fault of ours
    """A command that cannot go on, for a reason that its reader can act on."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED, code: str = "failed") -> None:
        """``message`` is a sentence that says what to do, ``code`` is for programs."""
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints, in the shape of the API's errors."""
        return {"error": {"message": self.message, "code": self.code, "exit_code": int(self.exit_code)}}


def usage(message: str) -> Failure:
    """The command was not asked in a way that it understands."""
    return Failure(message, Exit.USAGE, "usage")
