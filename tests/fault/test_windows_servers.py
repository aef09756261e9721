"""The servers are killed while they are used: NATS again and again under a consumer, Postgres under its writers."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from deploy.embedded.nats import EmbeddedNats
from deploy.embedded.postgres import EmbeddedPostgres
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import JobLateFact
from shared.eventstore.migrate import migrate
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.verify import verify
from shared.messaging.consumer import Pace
from shared.messaging.handling import Retries
from shared.problems import Unavailable
from tests.fault.rules import gapless
from tests.integration.messaging.harness import LEDGER, SERVICE, TABLES, Bench, until
from tests.support.bus import relaying
from tests.support.log import PASSWORDS, LogDatabase, StoreFor, a_fact, an_append
from tests.support.waiting import eventually

NATS_RESTARTS = int(os.environ.get("FAULT_NATS_RESTARTS", "30"))
RESTARTS_IN_A_ROW = 10
POSTGRES_KILLS = int(os.environ.get("FAULT_POSTGRES_KILLS", "3"))
WRITERS = 16
APPENDS_BETWEEN_KILLS = 150


async def kill_and_restart(server: EmbeddedNats | EmbeddedPostgres) -> None:
    """SIGKILL, and the same server again on the same data."""
    assert server.process is not None
    server.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(server.process.wait, 60)
    server.spawn()
    await eventually(lambda: asyncio.to_thread(server.is_ready), 60)


# ---- NATS, while a consumer fetches ----------------------------------------------------------------------------------


@pytest.fixture
async def bench(log_database: LogDatabase, bus_server: EmbeddedNats, store_for: StoreFor) -> AsyncIterator[Bench]:
    async with asyncpg.create_pool(log_database.dsn(SERVICE), min_size=1, max_size=5) as pool:
        await pool.execute(TABLES)
        yield Bench(log_database, bus_server, pool, store_for)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nats_killed_again_and_again_while_a_consumer_fetches_loses_doubles_and_reorders_nothing(
    bench: Bench,
) -> None:
    """Appends go on in each outage. The log is not asked meanwhile: JetStream itself has to come back each time."""
    pace = Pace(poll_s=600, takeover_s=0.05, retries=Retries())
    async with relaying(bench.database, bench.server), bench.consuming(pace=pace) as consumer:
        for number in range(1, NATS_RESTARTS + 1):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(kill_and_restart(bench.server))
                appending = tasks.create_task(bench.open_accounts(3))
            if number % RESTARTS_IN_A_ROW == 0:
                last = appending.result()[-1]
                await until(lambda last=last: _reached(consumer.position, last))
        handled = await bench.handled()
        tally = await bench.tally()
    assert handled == dict.fromkeys(range(1, 3 * NATS_RESTARTS + 1), 1)
    assert tally is not None
    assert tally["order_hash"] == _order_hash(list(handled))
    assert await bench.pool.fetchval("SELECT count(*) FROM inbox WHERE durable = $1", LEDGER.name) == len(handled)


def _order_hash(positions: list[int]) -> str:
    """What the bench's tally comes to when these positions are handled in this order."""
    digest = ""
    for position in positions:
        digest = hashlib.md5(f"{digest}{position}".encode(), usedforsecurity=False).hexdigest()
    return digest


async def _reached(position: int, wanted: int) -> bool:
    return position >= wanted


# ---- Postgres, while many append -------------------------------------------------------------------------------------


@pytest.fixture
def durable_postgres(server_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A cluster of this test's own with durability on."""
    server = EmbeddedPostgres(server_dir / f"pg-{uuid4().hex[:8]}").start()
    yield server
    server.stop()


class Writer:
    """Appends numbered facts to a stream of its own, one after the other, and remembers what it was told of each."""

    def __init__(self, store: PostgresEventStore) -> None:
        self._store = store
        self.stream = f"job-{uuid4()}"
        self.acknowledged: dict[str, int] = {}
        """Text -> the position it was said to be committed at."""
        self.unknown: set[str] = set()
        """Texts whose append ended without an answer: they may be there."""

    async def run(self, stop: asyncio.Event) -> None:
        version = number = 0
        while not stop.is_set():
            number += 1
            text = f"{self.stream} {number}"
            try:
                done = await self._store.append(an_append(self.stream, a_fact(text), expected_version=version))
            except Unavailable:
                self.unknown.add(text)
                version = await self._version()
            else:
                self.acknowledged[text] = done.last_position
                version = done.version

    async def _version(self) -> int:
        """Where the stream is, once the log answers again."""
        while True:
            try:
                history = await self._store.read_stream(self.stream)
            except Unavailable:
                await asyncio.sleep(0.01)  # the pace of asking
            else:
                return history[-1].stream_version if history else 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_postgres_killed_under_load_keeps_every_append_it_acknowledged(
    durable_postgres: EmbeddedPostgres,
) -> None:
    await migrate(durable_postgres.superuser_dsn, "tunewright", PASSWORDS)
    dsn = durable_postgres.dsn("scheduler", PASSWORDS["scheduler"], "tunewright")
    stop = asyncio.Event()
    async with PostgresEventStore.open(dsn) as store, asyncio.TaskGroup() as tasks:
        writers = [Writer(store) for _ in range(WRITERS)]
        for writer in writers:
            tasks.create_task(writer.run(stop))
        for _ in range(POSTGRES_KILLS):
            before = _acknowledged(writers)
            await until(lambda before=before: _has_gone_on(writers, before), 60)
            await kill_and_restart(durable_postgres)
        before = _acknowledged(writers)
        await until(lambda: _has_gone_on(writers, before), 60)
        stop.set()
    async with PostgresEventStore.open(dsn) as store:
        history = [event async for event in _whole(store)]
    assert gapless(history) == []
    there = {_text(event): event.global_position for event in history}
    assert len(there) == len(history), "an append stands in the log twice"
    told = {text: position for writer in writers for text, position in writer.acknowledged.items()}
    unknown = {text for writer in writers for text in writer.unknown}
    assert {text: there.get(text) for text in told} == told
    assert there.keys() - told.keys() <= unknown
    assert unknown, "no kill hit an append that was on its way"
    report = await verify(durable_postgres.dsn("inspector", PASSWORDS["inspector"], "tunewright"))
    assert report.is_intact, report.faults


def _acknowledged(writers: list[Writer]) -> int:
    return sum(len(writer.acknowledged) for writer in writers)


async def _has_gone_on(writers: list[Writer], before: int) -> bool:
    return _acknowledged(writers) >= before + APPENDS_BETWEEN_KILLS


async def _whole(store: PostgresEventStore) -> AsyncIterator[RecordedEvent]:
    position = 0
    while page := await store.read(after=position):
        for event in page:
            yield event
        position = page[-1].global_position


def _text(recorded: RecordedEvent) -> str:
    event = catalogue.decode(recorded)
    assert isinstance(event, JobLateFact)
    return event.fact
