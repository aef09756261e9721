"""The relay between a real log and a real JetStream, under the rights of its own roles."""

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, cast
from uuid import uuid4

import asyncpg
import msgspec
import nats.errors
import pytest
from nats.js.errors import NotFoundError

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.subjects import DURABLES, EVENTS_STREAM, STREAMS
from shared.eventstore.acks import AckInbox, RefusedError
from shared.eventstore.hashing import NO_HASH, seal_hash
from shared.eventstore.jetstream import jetstream
from shared.eventstore.migrate import migrate
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.publisher import Publisher
from shared.eventstore.relay import Relay
from shared.eventstore.topology import ForeignStreamError, StreamEnd, Topology
from tests.support.bus import connected_bus, stream_api
from tests.support.log import PASSWORDS, LogDatabase, StoreFor, a_fact, a_job_stream, an_account_event, an_append
from tests.support.published import published, published_positions
from tests.support.waiting import eventually

DEADLINE_S = 60.0


class Start(Protocol):
    async def __call__(self, *, seal_idle_s: float = 5.0) -> "Running": ...


class Running(msgspec.Struct, frozen=True):
    """A relay at work in this process, with its own connections."""

    relay: Relay
    stop: Callable[[], Awaitable[None]]

    async def reached(self, position: int) -> None:
        """Returns when everything up to `position` is published."""

        async def is_there() -> bool:
            return self.relay.position >= position

        await eventually(is_there)


@asynccontextmanager
async def running_relay(log: LogDatabase, server: EmbeddedNats, seal_idle_s: float) -> AsyncGenerator[Running]:
    stopping = asyncio.Event()
    async with (
        asyncpg.create_pool(log.dsn("relay"), min_size=1, max_size=3) as pool,
        connected_bus(server, "relay") as bus,
        asyncio.TaskGroup() as group,
    ):
        relay = Relay(pool, bus, seal_idle_s=seal_idle_s)
        task = group.create_task(relay.run(stopping))

        async def stop() -> None:
            stopping.set()
            await task

        yield Running(relay, stop)
        stopping.set()


@pytest.fixture
async def start(log_database: LogDatabase, bus_server: EmbeddedNats) -> AsyncIterator[Start]:
    """`await start()`: one more relay; all are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start_one(*, seal_idle_s: float = 5.0) -> Running:
            return await stack.enter_async_context(running_relay(log_database, bus_server, seal_idle_s))

        yield start_one


async def append_jobs(store_for: StoreFor, count: int) -> int:
    """So many events of job streams; the log's head after them."""
    store = await store_for("scheduler")
    done = await asyncio.gather(*(store.append(an_append(a_job_stream(), a_fact(str(n)))) for n in range(count)))
    return max(one.last_position for one in done)


async def test_events_arrive_in_log_order_with_everything_a_consumer_needs(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats
) -> None:
    head = await append_jobs(store_for, 3)
    billing = await store_for("billing")
    await billing.append(an_append("account-x1", an_account_event()))
    running = await start()
    head = await append_jobs(store_for, 2)
    await running.reached(head)
    sent = await published(bus_server)
    log = await billing.read()
    assert [one.event for one in sent] == log
    assert [one.headers["Tw-Position"] for one in sent] == ["1", "2", "3", "4", "5", "6"]
    assert [one.headers["Tw-Prev-In-Category"] for one in sent] == ["0", "1", "2", "0", "3", "5"]
    others = "artifact=0,attempt=0,dataset=0"
    assert [one.headers["Tw-Prev-Of-Each-Category"] for one in sent] == [
        f"account={account},{others},job={job},provider=0,worker=0"
        for account, job in [(0, 0), (0, 1), (0, 2), (0, 3), (4, 3), (4, 5)]
    ]
    store_id = await billing.store_id()
    assert [one.headers["Nats-Msg-Id"] for one in sent] == [f"{store_id}:{n}" for n in range(1, 7)]
    assert sent[3].subject == "evt.account.opened.x1"
    assert {one.headers["Nats-Expected-Stream"] for one in sent} == {EVENTS_STREAM}


async def test_streams_and_durables_exist_as_subjects_say(start: Start, bus_server: EmbeddedNats) -> None:
    running = await start()
    await asyncio.wait_for(running.relay.leading.wait(), DEADLINE_S)
    async with connected_bus(bus_server, "relay") as bus:
        stream = cast("Any", stream_api(bus))

        async def all_there() -> bool:
            try:
                return len(await stream.consumers_info(EVENTS_STREAM)) == len(DURABLES)
            except NotFoundError:
                return False

        await eventually(all_there)
        for spec in STREAMS:
            config = (await stream.stream_info(spec.name)).config
            assert tuple(config.subjects) == spec.subjects
            assert (config.max_age, config.max_bytes) == (spec.max_age_s, spec.max_bytes)
            assert config.duplicate_window == spec.duplicate_window_s
        for durable in DURABLES:
            config = (await stream.consumer_info(EVENTS_STREAM, durable.name)).config
            assert (config.filter_subjects or [config.filter_subject]) == durable.filter_subjects
            assert (config.ack_policy, config.ack_wait, config.max_deliver) == ("explicit", 30, -1)
        await stream.delete_consumer(EVENTS_STREAM, DURABLES[0].name)
        await eventually(all_there)


async def test_relay_resumes_after_its_checkpoint_and_sends_nothing_twice(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats
) -> None:
    first = await start()
    await first.reached(await append_jobs(store_for, 5))
    await first.stop()
    head = await append_jobs(store_for, 5)
    second = await start()
    await second.reached(head)
    assert await published_positions(bus_server) == list(range(1, 11))


async def test_relay_that_died_between_ack_and_checkpoint_leaves_no_duplicate(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats, log_database: LogDatabase
) -> None:
    first = await start()
    await first.reached(await append_jobs(store_for, 6))
    await first.stop()
    connection = await asyncpg.connect(log_database.superuser_dsn)
    await connection.execute("update log.relay_checkpoint set position = 2")
    await connection.close()
    second = await start()
    await second.reached(await append_jobs(store_for, 1))
    assert await published_positions(bus_server) == list(range(1, 8))


async def test_more_than_a_page_goes_out_in_order(start: Start, store_for: StoreFor, bus_server: EmbeddedNats) -> None:
    head = await append_jobs(store_for, 700)
    running = await start()
    await running.reached(head)
    assert await published_positions(bus_server) == list(range(1, 701))


async def test_nats_restart_loses_and_doubles_nothing(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats
) -> None:
    running = await start()
    await running.reached(await append_jobs(store_for, 5))
    bus_server.stop()
    head = await append_jobs(store_for, 5)
    bus_server.start()
    await running.reached(head)
    assert await published_positions(bus_server) == list(range(1, 11))


async def test_wiped_jetstream_gets_the_whole_log_again(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats
) -> None:
    running = await start()
    await running.reached(await append_jobs(store_for, 5))
    bus_server.stop()
    shutil.rmtree(bus_server.home / "jetstream")
    bus_server.start()

    async def all_there_again() -> bool:
        try:
            return len(await published(bus_server)) == 5
        except nats.errors.Error:  # it is only just back, or the stream is being made
            return False

    await eventually(all_there_again)


@pytest.mark.parametrize("damage", ["delete_stream", "purge_stream"])
async def test_deleted_or_purged_stream_is_published_anew(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats, damage: str
) -> None:
    running = await start()
    await running.reached(await append_jobs(store_for, 5))
    async with connected_bus(bus_server, "relay") as bus:
        stream = cast("Any", stream_api(bus))
        await getattr(stream, damage)(EVENTS_STREAM)

    async def all_there_again() -> bool:
        try:
            return await published_positions(bus_server) == [1, 2, 3, 4, 5]
        except nats.errors.Error:
            return False

    await eventually(all_there_again)


async def test_new_database_on_an_old_jetstream_is_published_from_its_beginning(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats, log_database: LogDatabase
) -> None:
    running = await start()
    await running.reached(await append_jobs(store_for, 5))
    await running.stop()
    other = LogDatabase(f"log_{uuid4().hex}", log_database.server)
    await migrate(log_database.server.superuser_dsn, other.name, PASSWORDS)
    async with (
        running_relay(other, bus_server, 5.0) as again,
        PostgresEventStore.open(other.dsn("scheduler"), connections=2) as store,
    ):
        await store.append(an_append(a_job_stream(), a_fact("of the new log")))
        await again.reached(1)
        assert [one.event for one in await published(bus_server)] == await store.read()


async def test_one_of_two_relays_publishes_and_the_other_takes_over(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats
) -> None:
    first = await start()
    await asyncio.wait_for(first.relay.leading.wait(), DEADLINE_S)
    second = await start()
    await first.reached(await append_jobs(store_for, 3))
    assert not second.relay.leading.is_set()
    assert second.relay.position == 0
    await first.stop()
    head = await append_jobs(store_for, 3)
    await second.reached(head)
    assert await published_positions(bus_server) == list(range(1, 7))


async def test_relay_whose_connection_is_cut_leads_again(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats, log_database: LogDatabase
) -> None:
    running = await start()
    await running.reached(await append_jobs(store_for, 3))
    connection = await asyncpg.connect(log_database.superuser_dsn)
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'relay'")
    await connection.close()
    await running.reached(await append_jobs(store_for, 3))
    assert await published_positions(bus_server) == list(range(1, 7))


async def test_rolled_back_append_publishes_nothing(
    start: Start, store_for: StoreFor, bus_server: EmbeddedNats, log_database: LogDatabase
) -> None:
    running = await start()
    store = await store_for("scheduler")
    connection = await asyncpg.connect(log_database.dsn("scheduler"))
    transaction = connection.transaction()
    await transaction.start()
    await store.append_in(connection, [an_append(a_job_stream(), a_fact("never"))])
    await transaction.rollback()
    await connection.close()
    await running.reached(await append_jobs(store_for, 1))
    assert [one.event for one in await published(bus_server)] == await store.read()
    assert await store.head() == 1


async def test_log_is_sealed_every_256_events_and_when_it_rests(
    start: Start, store_for: StoreFor, log_database: LogDatabase
) -> None:
    await append_jobs(store_for, 300)
    await start(seal_idle_s=0.2)
    connection = await asyncpg.connect(log_database.dsn("inspector"))

    async def two_seals() -> bool:
        return await connection.fetchval("select count(*) from log.seals") == 2

    await eventually(two_seals)
    seals = await connection.fetch("select * from log.seals order by to_position")
    await connection.close()
    log = await (await store_for("scheduler")).read()
    first = seal_hash(NO_HASH, 1, 256, (event.hash for event in log[:256]))
    second = seal_hash(first, 257, 300, (event.hash for event in log[256:]))
    assert [(s["from_position"], s["to_position"], s["event_count"], s["hash"]) for s in seals] == [
        (1, 256, 256, first),
        (257, 300, 44, second),
    ]


async def test_relay_that_does_not_know_it_was_replaced_neither_doubles_nor_disorders(
    store_for: StoreFor, bus_server: EmbeddedNats, log_database: LogDatabase
) -> None:
    await append_jobs(store_for, 9)
    store = await store_for("scheduler")
    log = await store.read()
    store_id = await store.store_id()
    connection = await asyncpg.connect(log_database.dsn("relay"))
    async with connected_bus(bus_server, "relay") as bus:
        stream = jetstream(bus.client)
        await Topology(stream, store_id).ensure()
        async with AckInbox(bus.client) as inbox:
            old, new = (Publisher(inbox, store_id, StreamEnd()) for _ in range(2))
            await new.publish(connection, log[:5])
            for late in (log[:5], log[:1], [msgspec.structs.replace(log[8], global_position=77)]):
                with pytest.raises(RefusedError, match="wrong last sequence"):
                    await old.publish(connection, late)
            await new.publish(connection, log[5:])
    await connection.close()
    assert await published_positions(bus_server) == list(range(1, 10))


async def test_message_that_jetstream_takes_for_one_it_has_removed_is_not_believed(
    store_for: StoreFor, bus_server: EmbeddedNats, log_database: LogDatabase
) -> None:
    await append_jobs(store_for, 3)
    store = await store_for("scheduler")
    store_id = await store.store_id()
    connection = await asyncpg.connect(log_database.dsn("relay"))
    async with connected_bus(bus_server, "relay") as bus:
        stream = jetstream(bus.client)
        topology = Topology(stream, store_id)
        await topology.ensure()
        async with AckInbox(bus.client) as inbox:
            await Publisher(inbox, store_id, StreamEnd()).publish(connection, await store.read())
            await cast("Any", stream_api(bus)).purge_stream(EVENTS_STREAM)
            with pytest.raises(ForeignStreamError, match="a duplicate of sequence 1 where 4 is due"):
                await Publisher(inbox, store_id, StreamEnd(sequence=3)).publish(connection, await store.read())
        with pytest.raises(ForeignStreamError, match="removed"):
            await topology.end()
    await connection.close()
