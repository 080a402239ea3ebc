"""What the gateway costs: CPU per request and added latency, against a bare reverse proxy in the same run.

    python -m benchmarks.gateway [--seconds 3] [--database-url postgresql://...]

Everything on loopback and in processes of its own: a mock provider (raw asyncio), nginx (or, without
one, a raw TCP proxy), the gateway with all its parts on (keys, routing, detectors, journal, COPY into
PostgreSQL), and wrk (or, without it, a client written here). CPU is read from /proc: it is the figure
that holds on a shared machine. Latency is that of one connection, so that it shows work and no queue.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).parents[1]
STORY = "The fox walked along the river and told the badger of the sea beyond the hills. "
ANSWER = STORY * 12  # about 1 KB
CHUNKS = 50
KEY_SECRET = "0" * 48


# -- the mock provider and the proxy of last resort


def _plain_answer() -> bytes:
    message = {"role": "assistant", "content": ANSWER}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 250, "total_tokens": 300},
    }
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _stream_pieces() -> list[bytes]:
    def piece(delta: dict[str, str], finish: str | None = None) -> bytes:
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "mock",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        return b"%x\r\n%s\r\n" % (len(data), data)

    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    words = [piece({"content": f"{word} "}) for word in (STORY * 4).split()[: CHUNKS - 1]]
    done = b"data: [DONE]\n\n"
    end = piece({}, "stop") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(done), done)
    return [head + words[0], *words[1:], end]


class MockProvider(asyncio.Protocol):
    """Answers at once; a stream's chunks are written one by one, a loop turn apart."""

    plain = _plain_answer()
    pieces = _stream_pieces()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.I)
        if not separator or (length and len(body) < int(length[1])):
            return
        self.buffer = b""
        if b'"stream":true' in body.replace(b" ", b""):
            self.send_piece(0)
        else:
            self.transport.write(self.plain)  # type: ignore[attr-defined]  # a plain transport

    def send_piece(self, number: int) -> None:
        if self.transport.is_closing():  # type: ignore[attr-defined]  # the load ended in the middle
            return
        self.transport.write(self.pieces[number])  # type: ignore[attr-defined]  # a plain transport
        if number + 1 < len(self.pieces):
            asyncio.get_running_loop().call_later(0.0005, self.send_piece, number + 1)


async def run_provider(port: int) -> None:
    """Serve the mock provider."""
    server = await asyncio.get_running_loop().create_server(MockProvider, "127.0.0.1", port)
    await server.serve_forever()


async def run_tcp_proxy(port: int, upstream: int) -> None:
    """Carry bytes both ways, for machines without nginx."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    await server.serve_forever()


def run_gateway(port: int, upstream: int, database_url: str, spool: str) -> None:
    """Serve the gateway, wired as in production."""
    from gateway.app import serve
    from gateway.settings import GatewayConfig, ProviderConfig

    provider = ProviderConfig(
        name="mock", kind="openai_compatible", base_url=f"http://127.0.0.1:{upstream}/v1", api_key="x"
    )
    config = GatewayConfig(
        gateway_id="bench",
        spool_dir=Path(spool),
        providers={"mock": provider},
        port=port,
        database_url=database_url,
    )
    serve(config)


# -- measuring


@dataclass(frozen=True)
class Load:
    """What a load generator saw."""

    requests: int
    p50_us: float
    p99_us: float


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children that live."""
    total = 0.0
    for task in [pid, *_children(pid)]:
        fields = Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def request_body(stream: bool) -> str:
    """About 1 KB of conversation."""
    messages = [{"role": "user", "content": STORY * 10}]
    metadata = {"conversation_id": "conversation-1"}
    return json.dumps({"model": "bench", "messages": messages, "metadata": metadata, "stream": stream})


def load_by_wrk(port: int, connections: int, seconds: int, body: str, directory: Path) -> Load:
    """Closed loop by wrk."""
    script = directory / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = [==[{body}]==]\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer ma_live_bench_{KEY_SECRET}"\n'
        "done = function(summary, latency)\n"
        '  io.write(string.format("R %d %d %d %d\\n", summary.requests, summary.errors.status,'
        " latency:percentile(50), latency:percentile(99)))\nend\n"
    )
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^R (\d+) (\d+) (\d+) (\d+)$", output, re.M)
    if not found or int(found[2]) or not int(found[1]):
        raise SystemExit(f"the load failed:\n{output}")
    return Load(int(found[1]), float(found[3]), float(found[4]))


async def load_by_asyncio(port: int, connections: int, seconds: int, body: str) -> Load:
    """Closed loop by plain sockets, for machines without wrk."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer ma_live_bench_{KEY_SECRET}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    until = time.monotonic() + seconds
    times: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            started = time.perf_counter()
            writer.write(head)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200 " not in answer.split(b"\r\n")[0]:
                raise SystemExit(f"the load failed: {answer!r}")
            if length := re.search(rb"content-length: (\d+)", answer):
                await reader.readexactly(int(length[1]))
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            times.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    times.sort()
    return Load(len(times), times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6)


def load(port: int, connections: int, seconds: int, stream: bool, directory: Path) -> Load:
    """One run of the best load generator there is."""
    body = request_body(stream)
    if shutil.which("wrk"):
        return load_by_wrk(port, connections, seconds, body, directory)
    return asyncio.run(load_by_asyncio(port, connections, seconds, body))


# -- the stage


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(port: int, *command: str) -> Iterator[int]:
    """A process that listens on a port, by its pid; told to stop at the end."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextlib.contextmanager
def bare_proxy(upstream: int, directory: Path) -> Iterator[tuple[str, int, int]]:
    """(name, port, pid) of nginx with kept-alive connections, else of the TCP proxy."""
    port = free_port()
    if not shutil.which("nginx"):
        with started(port, sys.executable, __file__, "--role", "proxy", str(port), str(upstream)) as pid:
            yield "raw asyncio TCP proxy", port, pid
        return
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};\n"
        f" fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n"
        f" upstream provider {{ server 127.0.0.1:{upstream}; keepalive 64; }}\n"
        f" server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://provider;\n"
        '  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    with started(port, "nginx", "-c", str(configuration), "-p", str(directory)) as pid:
        yield "nginx reverse proxy", port, pid


async def prepare_database(url: str) -> None:
    """A use case with a route and a key."""
    from storage import deployments, identities, routes, use_cases
    from storage.database import Database
    from storage.vocabulary import Arm, AssignmentUnit, Risk

    database = Database(url)
    async with database.transaction() as connection:
        await use_cases.declare(connection, name="bench", risk=Risk.LOW)
        deployment = await deployments.ensure_deployment(
            connection,
            provider="mock",
            model="mock",
            price_input=Decimal("1e-6"),
            price_output=Decimal("2e-6"),
        )
        release = await deployments.create_release(
            connection, use_case="bench", deployment_id=deployment, created_by="bench"
        )
        await routes.set_route(
            connection,
            use_case="bench",
            arms=[
                routes.ArmSetting(Arm.STABLE, release, 1.0),
                routes.ArmSetting(Arm.CANDIDATE, release, 0.1),
            ],
            assignment_unit=AssignmentUnit.CONVERSATION,
            reason="bench",
            created_by="bench",
        )
        await identities.ensure_key(
            connection, key_id="bench", secret=KEY_SECRET, name="bench", scopes=["infer"]
        )
    await database.close()


@contextlib.contextmanager
def prepared_database(given: str | None, directory: Path) -> Iterator[str]:
    """A migrated database with a route; an embedded server unless a URL is given."""
    from storage.embedded import embedded_server
    from storage.migrate import migrate

    with contextlib.ExitStack() as stack:
        url = given or stack.enter_context(embedded_server(directory / "pg"))
        migrate(url)
        asyncio.run(prepare_database(url))
        yield url


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    cpu_us: float | None
    latency: Load
    stream_cpu_us: float | None


def measure(
    name: str, port: int, pid: int | None, seconds: int, directory: Path, *, logs: bool = False
) -> Row:
    """CPU under load by 16 connections, latency by one, CPU of streams by 16."""
    load(port, 16, 1, False, directory)  # warm
    cpu = _cpu_per_request(port, pid, seconds, False, directory, logs)
    latency = load(port, 1, seconds, False, directory)
    return Row(
        name, cpu, latency, _cpu_per_request(port, pid, seconds, True, directory, logs) if pid else None
    )


def _cpu_per_request(
    port: int, pid: int | None, seconds: int, stream: bool, directory: Path, logs: bool
) -> float | None:
    """With everything that a request causes: a backlog of the log is neither inherited nor left behind."""
    if logs:
        await_shipped(port)
    before = cpu_seconds(pid) if pid else 0.0
    seen = load(port, 16, seconds, stream, directory)
    if logs:
        await_shipped(port)
    return (cpu_seconds(pid) - before) * 1e6 / seen.requests if pid else None


def read_metrics(port: int) -> str:
    """The gateway's own counts."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


def await_shipped(port: int) -> None:
    """Wait until every row is in the database."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        waiting = re.findall(r"^meta_agent_journal_(?:open_rows|segments) (\S+)", read_metrics(port), re.M)
        if not any(map(float, waiting)):
            return
        time.sleep(0.1)
    raise SystemExit("the gateway did not ship its log in 30 s")


def print_table(rows: list[Row]) -> None:
    """The result, latency as what each adds to the provider alone."""
    alone = rows[0].latency
    print(
        f"| through | CPU µs / plain request | CPU µs / {CHUNKS}-chunk stream | added p50 µs | added p99 µs |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        cells = [
            row.name,
            "–" if row.cpu_us is None else f"{row.cpu_us:.0f}",
            "–" if row.stream_cpu_us is None else f"{row.stream_cpu_us:.0f}",
            f"{row.latency.p50_us - alone.p50_us:.0f}",
            f"{row.latency.p99_us - alone.p99_us:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Set the stage, measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--seconds", type=int, default=3, help="of each of the eight runs")
    options.add_argument("--database-url", help="an empty database; absent: an embedded server")
    options.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.role:
        return play(given.role)
    with tempfile.TemporaryDirectory(prefix="ma-bench-", dir="/tmp", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)
        run(given.seconds, given.database_url, directory)
    return None


def play(role: list[str]) -> None:
    """Be one of the processes."""
    sys.path.insert(0, str(ROOT))
    import uvloop

    match role:
        case ["provider", port]:
            uvloop.run(run_provider(int(port)))
        case ["proxy", port, upstream]:
            uvloop.run(run_tcp_proxy(int(port), int(upstream)))
        case ["gateway", port, upstream, url, spool]:
            run_gateway(int(port), int(upstream), url, spool)


def run(seconds: int, database_url: str | None, directory: Path) -> None:
    """Measure the provider alone, the bare proxy, and the gateway."""
    upstream, port = free_port(), free_port()
    me = [sys.executable, __file__, "--role"]
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(prepared_database(database_url, directory))
        stack.enter_context(started(upstream, *me, "provider", str(upstream)))
        proxy, proxy_port, proxy_pid = stack.enter_context(bare_proxy(upstream, directory))
        spool = str(directory / "spool")
        pid = stack.enter_context(started(port, *me, "gateway", str(port), str(upstream), url, spool))
        rows = [
            measure("provider alone", upstream, None, seconds, directory),
            measure(proxy, proxy_port, proxy_pid, seconds, directory),
            measure("gateway", port, pid, seconds, directory, logs=True),
        ]
        memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        metrics = read_metrics(port)
    print_table(rows)
    shipped = re.search(r"^meta_agent_journal_shipped (\S+)", metrics, re.M)
    logged = sum(
        float(count) for count in re.findall(r"^meta_agent_requests_total\{.*\} (\S+)", metrics, re.M)
    )
    megabytes = int(memory[1]) // 1024 if memory else 0
    print(f"gateway: {megabytes} MB resident, {shipped[1] if shipped else 0} of {logged:.0f} rows shipped")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
