"""The sidecar as a process: messages on standard input and output, logs on standard error.

The end of its input means that the worker has gone: it ships what is left and ends. It holds nothing
that is not on disk or with the worker, and may be killed at any time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from gateway import logs
from gateway.sidecar.core import Sidecar
from gateway.sidecar.messages import LINE_BYTES, Configure, FromSidecar, decode_from_worker, encode
from storage.database import Database


async def _serve(answers: int) -> None:
    """Speak with the worker until it has gone; ``answers`` is the descriptor to write to."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    line = await reader.readline()
    if not line:
        return
    configure = decode_from_worker(line)
    if not isinstance(configure, Configure):
        raise TypeError("the first message configures")
    logs.configure(logging.getLevelName(configure.log_level), configure.log_format)
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    output, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(answers, "wb", buffering=0))

    def send(message: FromSidecar) -> None:
        if not output.is_closing():
            output.write(encode(message))

    database = Database(configure.database_url, pool_size=3)
    sidecar = Sidecar(configure, database, send)
    work = asyncio.create_task(sidecar.run())
    listening = asyncio.create_task(_listen(reader, sidecar))
    # Should a part fail, all ends with it, at once: the worker lives, and starts another sidecar.
    await asyncio.wait((work, listening), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
    listening.result()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await sidecar.finish()
    await database.close()


async def _listen(reader: asyncio.StreamReader, sidecar: Sidecar) -> None:
    while line := await reader.readline():
        sidecar.receive(decode_from_worker(line))


def main() -> None:
    """Run until the worker has gone."""
    # Signals to the whole group mean the worker: it may still answer for a while, and tells us when it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.configure("info", "text")
    # Whatever else writes to standard output must not break into the messages.
    answers = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(_serve(answers))


if __name__ == "__main__":
    main()
