"""The relay as a process of its own: stopped politely, killed rudely, started without its settings."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import asyncpg
import pytest

from deploy.embedded.nats import EmbeddedNats
from tests.support.log import LogDatabase, StoreFor, a_fact, a_job_stream, an_append
from tests.support.published import published_positions
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).resolve().parents[3]
EVENTS = 1000
KILLS = 3

StartProcess = Callable[[], Awaitable[Process]]


@pytest.fixture
def environment(log_database: LogDatabase, bus_server: EmbeddedNats) -> Mapping[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": log_database.dsn("relay"),
        "NATS_URL": bus_server.url,
        "NATS_USER": "relay",
        "NATS_PASSWORD": "test-relay",
    }


@pytest.fixture
async def start(environment: Mapping[str, str]) -> AsyncIterator[StartProcess]:
    """`await start()`: one more relay process; none outlives the test."""
    started: list[Process] = []

    async def start_one() -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "shared.eventstore.relay", env=environment, cwd=REPOSITORY, stdout=PIPE, stderr=PIPE
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def append_jobs(store_for: StoreFor, count: int) -> None:
    store = await store_for("scheduler")
    await asyncio.gather(*(store.append(an_append(a_job_stream(), a_fact(str(n)))) for n in range(count)))


async def published_count(log_database: LogDatabase) -> int:
    """How far the relay says that it has published."""
    connection = await asyncpg.connect(log_database.dsn("inspector"))
    position: int | None = await connection.fetchval("select position from log.relay_checkpoint")
    await connection.close()
    return position or 0


@pytest.mark.timeout(240)
async def test_killed_relays_leave_the_log_in_jetstream_once_and_in_order(
    start: StartProcess, store_for: StoreFor, log_database: LogDatabase, bus_server: EmbeddedNats
) -> None:
    """Each relay gets events of its own: one that is quicker than this test may have published all there were."""
    reached, total = 0, (KILLS + 1) * EVENTS
    for _ in range(KILLS):
        await append_jobs(store_for, EVENTS)
        process = await start()

        async def has_gone_on(since: int = reached) -> bool:
            return await published_count(log_database) > since

        await eventually(has_gone_on)
        process.kill()
        await process.wait()
        reached = await published_count(log_database)
    await append_jobs(store_for, EVENTS)
    await start()

    async def is_done() -> bool:
        return await published_count(log_database) == total

    await eventually(is_done)
    assert await published_positions(bus_server) == list(range(1, total + 1))


async def test_relay_ends_on_sigterm_with_its_page_finished(
    start: StartProcess, store_for: StoreFor, log_database: LogDatabase, bus_server: EmbeddedNats
) -> None:
    await append_jobs(store_for, 3 * EVENTS)
    process = await start()

    async def has_begun() -> bool:
        return await published_count(log_database) > 0

    await eventually(has_begun)
    process.send_signal(signal.SIGTERM)
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors
    assert b"relay.process.stopped" in output
    there = await published_positions(bus_server)
    assert there == list(range(1, await published_count(log_database) + 1))


async def test_relay_waits_for_servers_that_are_not_there_and_still_ends_on_sigterm(
    environment: Mapping[str, str],
) -> None:
    away = {**environment, "DATABASE_URL": "postgresql://relay:x@127.0.0.1:1/none"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shared.eventstore.relay", env=away, cwd=REPOSITORY, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    assert b"relay.log.unavailable" in line
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0


async def test_relay_without_settings_says_which_are_missing() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shared.eventstore.relay", env={}, cwd=REPOSITORY, stdout=PIPE, stderr=PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 78
    assert [line for line in errors.decode().splitlines() if line.endswith("is not set")] == [
        "DATABASE_URL is not set",
        "NATS_URL is not set",
        "NATS_USER is not set",
        "NATS_PASSWORD is not set",
    ]
