"""Processes of a benchmark: started, pinned to cores, measured by /proc, and stopped whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class DidNotStartError(Exception):
    """A process ended, or nobody listened on its port in time."""


# -- cores


def cores() -> tuple[set[int], set[int]]:
    """(for the load, the mock provider and PostgreSQL; for what is measured): apart if there are two."""
    there = sorted(_ALLOWED)
    return (set(there[:-1]), {there[-1]}) if len(there) > 1 else (set(there), set(there))


def stay_off_measured_core() -> None:
    """Keep this process, and what it starts without saying where, away from what is measured."""
    os.sched_setaffinity(0, cores()[0])


_ALLOWED = os.sched_getaffinity(0)
_LIBC = ctypes.CDLL(None)


# -- starting and stopping


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    command: Sequence[str],
    port: int,
    *,
    on: set[int] | None = None,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """A process that listens on a port, by its pid; it and its children are gone at the end.

    An empty variable of the environment is taken away.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=out,
            stderr=out,
            env={name: value for name, value in {**os.environ, **(environment or {})}.items() if value},
            start_new_session=True,  # Ctrl-C is for the benchmark, which then stops this one in order
            preexec_fn=lambda: _settle_in(on),
        )
        stack.callback(_stop, process)
        _await_port(process, port, log)
        yield process.pid


def _settle_in(on: set[int] | None) -> None:
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    if on:
        os.sched_setaffinity(0, on)


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path | None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _listens(process.pid, port):
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:] if log and log.exists() else ""
            raise DidNotStartError(f"{shlex.join(map(str, process.args))[:200]}\n{said}")  # type: ignore[arg-type]  # a list
        time.sleep(0.05)


def _listens(pid: int, port: int) -> bool:
    """Whether this very process does: several may share a port."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}
    for each in descendants(pid) if listening else ():
        with contextlib.suppress(OSError):
            if any(_link(path) in listening for path in Path(f"/proc/{each}/fd").iterdir()):
                return True
    return False


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    deadline = time.monotonic() + _STOP_SECONDS
    while any(map(_is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in filter(_is_alive, family):
        print(f"had to be killed: {_command_of(pid)}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _is_alive(pid: int) -> bool:
    try:
        return _stat(pid)[0] not in ("Z", "X")
    except OSError:
        return False


# -- measuring


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB."""

    rss: float
    pss: float  #: shared pages divided among those who share them


def descendants(pid: int) -> list[int]:
    """A process and all that came of it and live."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
    return found


def cpu_us(pid: int) -> dict[str, float]:
    """Microseconds of CPU so far, user and system, of a process and its descendants, by part."""
    total: dict[str, float] = {}
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            part = part_of(each, pid)
            total[part] = total.get(part, 0.0) + _cpu_of(each)
    return total


def memory(pid: int) -> dict[str, Memory]:
    """What a process and its descendants hold, by part."""
    total: dict[str, Memory] = {}
    for each in descendants(pid):
        with contextlib.suppress(OSError, KeyError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
            part, before = part_of(each, pid), total.get(part_of(each, pid), Memory(0, 0))
            total[part] = Memory(before.rss + sizes["Rss"], before.pss + sizes["Pss"])
    return total


def part_of(pid: int, root: int) -> str:
    """Which part of a gateway a process is: the worker, its sidecar, or something else."""
    if pid == root:
        return "worker"
    command = _command_of(pid)
    return next((name for name in ("sidecar", "translator") if name in command), "others")


def _command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _cpu_of(pid: int) -> float:
    """From the scheduler in nanoseconds if it tells, else from utime and stime in ticks."""
    tasks = [task / "schedstat" for task in Path(f"/proc/{pid}/task").iterdir()]
    if tasks[0].exists():
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
