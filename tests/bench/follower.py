"""A service's consumer in a process of its own, which notes when each event was in its hands and when it was handled.

`python -m tests.bench.follower DURABLE` with a service's environment. Each line it reads asks for a line: `ready` when
the consumer is active, `times POSITION` for `[[position, in hand ns, handled ns], …]` once it has handled POSITION.
"""

import asyncio
import os
import sys
import time

import asyncpg
import msgspec
import uvloop

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import DURABLES
from shared.eventstore.postgres import PostgresEventStore
from shared.messaging.connection import Bus, BusSettings
from shared.messaging.consumer import Consumer, Subscription
from shared.messaging.pull import StandingPull
from shared.observability import logging
from shared.settings import Secret

_WAIT_S = 30.0


class Notes:
    """When each position was in hand, and up to where everything was handled when."""

    def __init__(self) -> None:
        self._in_hand: list[tuple[int, int]] = []
        self._handled: list[tuple[int, int]] = []

    async def project(self, _: asyncpg.Connection, event: RecordedEvent) -> None:
        self._in_hand.append((event.global_position, time.monotonic_ns()))

    async def watch(self, consumer: Consumer, stop: asyncio.Event) -> None:
        """Notes each step of the consumer's position."""
        while not stop.is_set():
            if await consumer.wait_for(consumer.position + 1, 1.0):
                self._handled.append((consumer.position, time.monotonic_ns()))

    def take(self) -> list[tuple[int, int, int]]:
        """Everything noted since the last call."""
        steps = iter(self._handled)
        position, at = next(steps, (0, 0))
        taken: list[tuple[int, int, int]] = []
        for event, seen in self._in_hand:
            while position < event:
                position, at = next(steps, (event, 0))
            taken.append((event, seen, at))
        self._in_hand, self._handled = [], []
        return taken


async def _answer(consumer: Consumer, notes: Notes, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        word, _, position = line.strip().partition(" ")
        if word == "ready":
            async with asyncio.timeout(_WAIT_S):
                while not consumer.is_active:  # noqa: ASYNC110 - it sets no Event of ours
                    await asyncio.sleep(0.02)
            print("ready", flush=True)
        else:
            await consumer.wait_for(int(position), _WAIT_S)
            await asyncio.sleep(0.05)  # the watcher notes the last step
            print(msgspec.json.encode(notes.take()).decode(), flush=True)
    stop.set()


async def _main(durable_name: str) -> None:
    durable = next(one for one in DURABLES if one.name == durable_name)
    env, stop, notes = os.environ, asyncio.Event(), Notes()
    settings = BusSettings(url=env["NATS_URL"], user=env["NATS_USER"], password=Secret(env["NATS_PASSWORD"]))
    bus = await Bus.connect(settings, service=durable.service)
    async with asyncpg.create_pool(env["DATABASE_URL"], min_size=2, max_size=4) as pool:
        consumer = Consumer(
            Subscription(durable=durable, project=notes.project),
            store=PostgresEventStore(pool),
            pull=lambda durable, arrived: StandingPull(bus.client, durable, arrived),
            pool=pool,
            connect=lambda: asyncpg.connect(env["DATABASE_URL"], command_timeout=30),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(consumer.run(stop))
            tasks.create_task(notes.watch(consumer, stop))
            tasks.create_task(_answer(consumer, notes, stop))
    await bus.close()


if __name__ == "__main__":
    logging.configure("follower", level="ERROR", stream=sys.stderr)
    uvloop.run(_main(sys.argv[1]))
