"""One service's consumer with real rows, between a real log and a real bus, and ways to hurt what lies between."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import msgspec
from nats.js.errors import NotFoundError

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import BILLING_LEDGER, BILLING_METERING, EVENTS_STREAM, Durable, event_subject
from shared.eventstore.postgres import PostgresEventStore
from shared.messaging.connection import Bus
from shared.messaging.consumer import Consumer, Pace, Subscription
from shared.messaging.handling import Project, React, Retries, Wants
from shared.messaging.pull import StandingPull
from shared.messaging.right_of_way import RightOfWay
from tests.support.bus import connected_bus, stream_api
from tests.support.log import LogDatabase, StoreFor, a_fact, an_account_event, an_append

SERVICE = "billing"
LEDGER = BILLING_LEDGER
METERING = BILLING_METERING
QUICK = Pace(poll_s=0.2, takeover_s=0.05, retries=Retries(tries=3, first_pause_s=0.01, longest_pause_s=0.05))
PATIENT = Pace(poll_s=600, takeover_s=0.05, retries=QUICK.retries)
"""A pace at which the log is not asked by itself during a test: what arrives came over JetStream."""

TABLES = """
CREATE TABLE seen (
    position bigint NOT NULL, stream text NOT NULL, type text NOT NULL,
    handled int NOT NULL DEFAULT 1, PRIMARY KEY (position)
);
CREATE TABLE tally (stream text PRIMARY KEY, events int NOT NULL, order_hash text NOT NULL);
"""
_SEEN = """
INSERT INTO seen (position, stream, type) VALUES ($1, $2, $3)
ON CONFLICT (position) DO UPDATE SET handled = seen.handled + 1
"""
_TALLY = """
INSERT INTO tally (stream, events, order_hash) VALUES ('all', 1, md5($1))
ON CONFLICT (stream) DO UPDATE SET events = tally.events + 1, order_hash = md5(tally.order_hash || $1)
"""


async def project(connection: asyncpg.Connection, event: RecordedEvent) -> None:
    """A row for each event that counts its handlings, and a tally whose hash depends on their order."""
    await connection.execute(_SEEN, event.global_position, event.stream, event.type)
    await connection.execute(_TALLY, str(event.global_position))


class Bench:
    """A log with `seen` and `tally` in billing's schema, and consumers on it."""

    def __init__(self, database: LogDatabase, server: EmbeddedNats, pool: asyncpg.Pool, store_for: StoreFor) -> None:
        self.database = database
        self.server = server
        self.pool = pool
        self.store_for = store_for

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.database.dsn(SERVICE), command_timeout=10)

    @asynccontextmanager
    async def consuming(
        self,
        *,
        durable: Durable = LEDGER,
        react: React | None = None,
        wants: Wants | None = None,
        stories_at_once: int = 1,
        project: Project | None = project,
        pace: Pace = QUICK,
        connect: Callable[[], Awaitable[asyncpg.Connection]] | None = None,
        right_of_way: RightOfWay | None = None,
    ) -> AsyncGenerator[Consumer]:
        """A replica of the consumer, stopped at the end."""
        stop = asyncio.Event()
        async with connected_bus(self.server, SERVICE) as bus:
            consumer = Consumer(
                Subscription(
                    durable=durable, react=react, wants=wants, stories_at_once=stories_at_once, project=project
                ),
                store=await self.store_for(SERVICE),
                pull=partial(StandingPull, bus.client),
                pool=self.pool,
                connect=connect or self.connect,
                pace=pace,
                right_of_way=right_of_way,
            )
            running = asyncio.create_task(consumer.run(stop))
            try:
                yield consumer
            finally:
                stop.set()
                await asyncio.wait_for(running, 60)

    async def open_accounts(self, count: int = 1, story: UUID | None = None) -> list[int]:
        """Events of one category, each on a stream of its own and in a story of its own; their positions."""
        store = await self.store_for("billing")
        appends = [an_append(f"account-{uuid4()}", an_account_event(), correlation_id=story) for _ in range(count)]
        done = await asyncio.gather(*(store.append(append) for append in appends))
        return sorted(one.last_position for one in done)

    async def record_facts(self, count: int = 1, stream: str | None = None, story: UUID | None = None) -> list[int]:
        """Events of the category `job`."""
        store = await self.store_for("scheduler")
        name = stream or f"job-{uuid4()}"
        return [
            (
                await store.append(an_append(name, a_fact(), expected_version=version, correlation_id=story))
            ).last_position
            for version in range(count)
        ]

    async def handled(self) -> dict[int, int]:
        """Position -> how often its rows were written."""
        rows = await self.pool.fetch("SELECT position, handled FROM seen ORDER BY position")
        return {row["position"]: row["handled"] for row in rows}

    async def tally(self) -> asyncpg.Record | None:
        return await self.pool.fetchrow("SELECT events, order_hash FROM tally")

    async def event_at(self, position: int) -> RecordedEvent:
        store: PostgresEventStore = await self.store_for(SERVICE)
        return (await store.read(after=position - 1, up_to=position))[0]

    async def redeliver(self, position: int) -> None:
        """Puts an event into JetStream once more, as a duplicate beyond the duplicate window would be."""
        store = await self.store_for(SERVICE)
        event = await self.event_at(position)
        headers = {
            "Nats-Msg-Id": f"{await store.store_id()}:{position}:{uuid4()}",
            "Tw-Position": str(position),
            "Tw-Prev-In-Category": "0",
        }
        await self.publish(event, headers)

    async def publish(self, event: RecordedEvent, headers: dict[str, str]) -> None:
        async with connected_bus(self.server, "relay") as bus:
            await stream_api(bus).publish(
                event_subject(event.type, event.stream), msgspec.json.encode(event), headers=headers
            )

    @asynccontextmanager
    async def relay_bus(self) -> AsyncGenerator[Bus]:
        async with connected_bus(self.server, "relay") as bus:
            yield bus

    async def wipe_jetstream(self) -> None:
        async with self.relay_bus() as bus:
            with suppress(NotFoundError):  # the relay has not made it again since the last time
                await stream_api(bus).delete_stream(EVENTS_STREAM)


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float = 60) -> None:
    """Returns when the condition holds, or fails."""
    async with asyncio.timeout(limit_s):
        while not await condition():  # noqa: ASYNC110 - the condition lies in Postgres or NATS
            await asyncio.sleep(0.01)
