"""The supervisor against real processes that crash, hang, and do not listen."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from meta_agent import supervisor as module
from meta_agent.supervisor import ProcessSpec, StartError, Supervisor

SLEEPER = "import time; time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEPER}"


def spec(name: str, code: str, **changes: object) -> ProcessSpec:
    return ProcessSpec(name=name, argv=[sys.executable, "-c", code], **changes)  # type: ignore[arg-type]


async def until(look: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "gave up waiting"
        await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    made = Supervisor(tmp_path / "logs")
    yield made
    await made.stop()


async def test_a_crashed_process_is_started_again_with_growing_waits(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.1)
    code = f"import time; open({str(tmp_path / 'starts')!r}, 'a').write(f'{{time.monotonic()}}\\n')"
    await supervisor.start(spec("crasher", f"{code}; time.sleep(0.3); raise SystemExit(3)"))
    starts = tmp_path / "starts"
    await until(lambda: starts.exists() and len(starts.read_text().split()) >= 4)
    moments = [float(each) for each in starts.read_text().split()]
    waits = [after - before for before, after in itertools.pairwise(moments)]
    assert waits[0] < waits[1] < waits[2]


async def test_a_killed_process_is_replaced(supervisor: Supervisor) -> None:
    await supervisor.start(spec("sleeper", SLEEPER))
    first = supervisor.pid("sleeper")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.pid("sleeper") not in (None, first))


async def test_who_does_not_listen_is_killed(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    for name in ("one", "two"):
        await supervisor.start(spec(name, DEAF))
        log = supervisor.log_file(name)
        await until(lambda log=log: "deaf" in log.read_text())
    pids = [supervisor.pid(name) for name in ("one", "two")]
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 5
    assert not any(is_alive(pid) for pid in pids if pid)


async def test_stopping_while_one_waits_to_be_restarted_starts_nothing(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.start(spec("crasher", "raise SystemExit(1)", ready=_at_once))
    await until(lambda: supervisor.pid("crasher") is None)
    await supervisor.stop()
    assert supervisor.pid("crasher") is None


async def _at_once() -> bool:
    return True


async def _never() -> bool:
    return False


async def test_who_cannot_start_leaves_its_last_words(supervisor: Supervisor) -> None:
    supervisor.log_file("broken").write_text("of an earlier life\n")
    code = "print('\\n'.join(map(str, range(99)))); raise SystemExit('no such table [/red]')"
    with pytest.raises(StartError) as caught:
        await supervisor.start(spec("broken", code, ready=_never))
    message = str(caught.value)
    assert message.startswith("broken ended at once with 1:")
    assert "no such table [/red]" in message
    assert str(supervisor.log_file("broken")) in message
    assert "98" in message.splitlines()
    assert "earlier life" not in message
    assert len(message.splitlines()) < 20


async def test_who_is_never_ready_is_given_up_and_stopped(supervisor: Supervisor) -> None:
    with pytest.raises(StartError, match="sleeper is not ready after 0 s"):
        await supervisor.start(spec("sleeper", SLEEPER, ready_url="http://127.0.0.1:9/", ready_seconds=0.2))
    pid = supervisor.pid("sleeper")
    assert pid is not None
    await supervisor.stop()
    assert not is_alive(pid)


async def test_readiness_is_asked_without_the_surroundings_proxy(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from meta_agent.supervisor import ProcessSpec, Supervisor
import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
async def main():
    supervisor = Supervisor(Path({str(tmp_path)!r}))
    argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    try:
        await supervisor.start(
            ProcessSpec(name="server", argv=argv, ready_url=f"http://127.0.0.1:{{port}}/", ready_seconds=15)
        )
    finally:
        await supervisor.stop()
asyncio.run(main())
"""
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environ)
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_log_that_grew_too_long_begins_anew(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_BYTES", 100)
    log = supervisor.log_file("talker")
    log.write_text("x" * 200)
    await supervisor.start(spec("talker", f"print('new', flush=True); {SLEEPER}"))
    await until(lambda: log.exists() and log.read_text() == "new\n")
    assert log.with_name("talker.log.1").read_text() == "x" * 200


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_children_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from meta_agent.supervisor import ProcessSpec, Supervisor
async def main():
    supervisor = Supervisor(Path({str(tmp_path)!r}))
    await supervisor.start(ProcessSpec(name="sleeper", argv=[sys.executable, "-c", {SLEEPER!r}]))
    print(supervisor.pid("sleeper"), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
