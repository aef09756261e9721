"""The road from a commit to a consumer without us: insert and NOTIFY, a listener that publishes to JetStream, a pull.

All in the process of the appenders: no other process has to be woken up. Messages are as large as events are.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import nats
from nats.js.api import ConsumerConfig

from deploy.embedded.nats import EmbeddedNats
from tests.bench.servers import BENCH_USER
from tests.support.log import LogDatabase

SECONDS = 2.0
APPENDERS = 8
_PAYLOAD = b"x" * 900
_TABLE = "create table bare (position bigint generated always as identity primary key, data bytea not null)"
_INSERT = "insert into bare (data) values ($1) returning position, pg_notify('bare', '')"
_READ = "select position from bare where position > $1 order by 1"

Commit = Callable[[], Awaitable[int]]
"""Commits one event and gives its position."""


async def pace(commit: Commit, rate: int) -> dict[int, int]:
    """Commits `rate` events a second, evenly; position -> when the answer came, in monotonic nanoseconds."""
    committed: dict[int, int] = {}
    started = time.monotonic()
    due = iter(range(int(SECONDS * rate)))

    async def appender() -> None:
        for number in due:
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            position = await commit()
            committed[position] = time.monotonic_ns()

    await asyncio.gather(*(appender() for _ in range(APPENDERS)))
    return committed


class _Road:
    def __init__(self, stream: Any, pull: Any, connections: list[asyncpg.Connection]) -> None:
        self._stream = stream
        self._pull = pull
        self._listener, *self._idle = connections
        self._woken = asyncio.Event()
        self._received: dict[int, int] = {}

    async def measure(self, rate: int) -> list[float]:
        """Milliseconds from commit to receipt, of each message."""
        committed = await pace(self._commit, rate)
        async with asyncio.timeout(30):
            while not committed.keys() <= self._received.keys():  # noqa: ASYNC110 - the last are still on their way
                await asyncio.sleep(0.01)
        return [(self._received[position] - at) / 1e6 for position, at in committed.items()]

    async def _commit(self) -> int:
        connection = self._idle.pop()
        try:
            return int(await connection.fetchval(_INSERT, _PAYLOAD))
        finally:
            self._idle.append(connection)

    def _wake(self, *_: object) -> None:
        self._woken.set()

    async def publish(self) -> None:
        await self._listener.add_listener("bare", self._wake)
        published: set[int] = set()
        while True:
            await self._woken.wait()
            self._woken.clear()
            # An identity column gives positions before commits: what is committed late lies below what is published.
            rows = await self._listener.fetch(_READ, max(published, default=0) - 100 * APPENDERS)
            fresh = [row["position"] for row in rows if row["position"] not in published]
            answers = [
                await self._stream.publish_async("bare.x", _PAYLOAD, headers={"p": str(position)}) for position in fresh
            ]
            await asyncio.gather(*answers)
            published.update(fresh)

    async def receive(self) -> None:
        while True:
            try:
                messages = await self._pull.fetch(256, timeout=5)
            except TimeoutError:
                continue
            now = time.monotonic_ns()
            for message in messages:
                self._received[int(message.headers["p"])] = now
                await message.ack()


@asynccontextmanager
async def bare_road(
    database: LogDatabase, bus: EmbeddedNats
) -> AsyncGenerator[Callable[[int], Awaitable[list[float]]]]:
    """`await measure(rate)`: the delays of a round at so many events a second."""
    options: dict[str, Any] = {"user": BENCH_USER, "password": BENCH_USER}
    client = await nats.connect(bus.url, **options)  # pyright: ignore[reportUnknownMemberType] - untyped options
    stream: Any = client.jetstream()  # pyright: ignore[reportUnknownMemberType] - untyped options
    await stream.add_stream(name="BARE", subjects=["bare.>"])
    pull = await stream.pull_subscribe("bare.>", "bare", "BARE", config=ConsumerConfig(max_ack_pending=100_000))
    connections = [await asyncpg.connect(database.superuser_dsn) for _ in range(APPENDERS + 1)]
    await connections[0].execute(_TABLE)
    road = _Road(stream, pull, connections)
    tasks = [asyncio.create_task(road.publish()), asyncio.create_task(road.receive())]
    try:
        yield road.measure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        for connection in connections:
            await connection.close()
