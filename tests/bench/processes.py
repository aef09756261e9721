"""The product's own processes beside a benchmark: what is measured runs where it always runs."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.embedded.nats import EmbeddedNats
from tests.bench.report import ROOT
from tests.support.bus import bus_password
from tests.support.log import LogDatabase

STOP_S = 20.0


def environment(database: LogDatabase, bus: EmbeddedNats, service: str, **extra: object) -> dict[str, str]:
    """What a service, or the relay, reads to run on this log and this bus."""
    return {
        "DATABASE_URL": database.dsn(service),
        "NATS_URL": bus.url,
        "NATS_USER": service,
        "NATS_PASSWORD": bus_password(service),
        "LOG_LEVEL": "WARNING",
        **{name.upper(): str(value) for name, value in extra.items()},
    }


@asynccontextmanager
async def running(
    module: str, env: Mapping[str, str], log: Path, *arguments: str, talks: bool = False
) -> AsyncGenerator[Process]:
    """`python -m module`, stopped by SIGTERM at the end. One that `talks` has pipes; all else goes to `log`."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=PIPE if talks else None,
            stdout=PIPE if talks else errors,
            stderr=errors,
            limit=64 * 1024**2,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def ask(process: Process, question: str) -> bytes:
    """Sends a line, and gives the line that comes back."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(question.encode() + b"\n")
    async with asyncio.timeout(60):
        await process.stdin.drain()
        return await process.stdout.readline()
