"""Consumers: exactly once in effect, in log order, one active replica, and never stuck on an event."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
import nats.errors
import pytest

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import EVENTS_STREAM, Durable
from shared.messaging.consumer import Consumer
from shared.problems import Rejected, Unavailable
from tests.integration.messaging.harness import LEDGER, METERING, PATIENT, Bench, project, until
from tests.support.bus import relaying, stream_api


async def until_seen(bench: Bench, positions: list[int]) -> None:
    async def all_seen() -> bool:
        return set(positions) <= (await bench.handled()).keys()

    await until(all_seen)


async def until_active(*consumers: Consumer) -> None:
    async def one_is() -> bool:
        return any(consumer.is_active for consumer in consumers)

    await until(one_is)


async def until_acknowledged(bench: Bench, count: int, durable: Durable = LEDGER) -> None:
    """Until the durable has been given the stream's first `count` messages and owes no acknowledgement."""
    async with bench.relay_bus() as bus:

        async def done() -> bool:
            try:
                info = await stream_api(bus).consumer_info(EVENTS_STREAM, durable.name)
            except nats.errors.Error:  # the relay has not made it yet
                return False
            delivered = info.delivered.stream_seq if info.delivered else 0
            return delivered >= count and info.num_ack_pending == 0

        await until(done)


@pytest.mark.usefixtures("bus_relay")
async def test_events_arrive_over_jetstream_without_asking_the_log(bench: Bench) -> None:
    async with bench.consuming(pace=PATIENT) as consumer:
        await until_active(consumer)
        positions = await bench.open_accounts(50)
        await until_seen(bench, positions)
    assert await bench.handled() == dict.fromkeys(positions, 1)


async def test_redelivered_event_is_handled_once(bench: Bench) -> None:
    """Breaks when the inbox is not asked: these copies come after the duplicate window, so JetStream keeps them."""
    async with bench.consuming(pace=PATIENT) as consumer:
        async with relaying(bench.database, bench.server):
            await until_active(consumer)
            positions = await bench.open_accounts(3)
            await until_seen(bench, positions)
        for position in positions:
            await bench.redeliver(position)
        await until_acknowledged(bench, 6)
    assert await bench.handled() == dict.fromkeys(positions, 1)


async def test_redelivered_event_is_not_reacted_to_again(bench: Bench) -> None:
    reacted: list[int] = []

    async def react(event: RecordedEvent) -> None:
        reacted.append(event.global_position)

    async with bench.consuming(react=react, pace=PATIENT) as consumer:
        async with relaying(bench.database, bench.server):
            await until_active(consumer)
            positions = await bench.open_accounts(2)
            await until_seen(bench, positions)
        await bench.redeliver(positions[0])
        await until_acknowledged(bench, 3)
    assert reacted == positions


async def test_event_committed_by_a_replica_that_died_before_its_ack_is_handled_once(bench: Bench) -> None:
    """What a crash between commit and ack leaves: rows and inbox are there, JetStream brings the event (again)."""
    async with bench.consuming() as consumer:  # no relay yet: the events come from the log, and nothing is acknowledged
        positions = await bench.open_accounts(5)
        assert await consumer.wait_for(positions[-1], 60)
    async with relaying(bench.database, bench.server), bench.consuming(pace=PATIENT):
        await until_acknowledged(bench, len(positions))
    assert await bench.handled() == dict.fromkeys(positions, 1)


@pytest.mark.usefixtures("bus_relay")
async def test_crash_between_projection_and_commit_leaves_no_row_behind(bench: Bench) -> None:
    failures = iter([True, False])

    async def die_once(connection: asyncpg.Connection, event: RecordedEvent) -> None:
        await project(connection, event)
        if next(failures, False):
            connection.terminate()

    async with bench.consuming(project=die_once) as consumer:
        positions = await bench.open_accounts(1)
        assert await consumer.wait_for(positions[-1], 60)
    assert await bench.handled() == {positions[0]: 1}


@pytest.mark.usefixtures("bus_relay")
@pytest.mark.parametrize("durable", [LEDGER, METERING], ids=["one category", "two categories"])
async def test_order_is_kept_while_an_event_is_retried(bench: Bench, durable: Durable) -> None:
    order: list[int] = []
    away = {"left": 6}

    async def react(event: RecordedEvent) -> None:
        if away["left"] and len(order) == 2:
            away["left"] -= 1
            raise Unavailable("storage is away")
        order.append(event.global_position)

    async with bench.consuming(durable=durable, react=react) as consumer:
        make = bench.open_accounts if durable is LEDGER else bench.record_facts
        positions = await make(8)
        assert await consumer.wait_for(positions[-1], 60)
    assert order == positions
    assert away["left"] == 0


async def test_stories_are_reacted_to_beside_each_other_and_each_in_its_order(bench: Bench) -> None:
    """Two stories wait for each other in the middle: one after the other they would never end."""
    stories = [uuid4(), uuid4()]
    order: dict[UUID, list[int]] = {story: [] for story in stories}
    met = asyncio.Barrier(2)
    for _ in range(3):
        for story in stories:
            await bench.open_accounts(1, story=story)
    unwanted = await bench.open_accounts(1)

    async def react(event: RecordedEvent) -> None:
        async with asyncio.timeout(60):
            await met.wait()
        order[event.correlation_id].append(event.global_position)

    def wants(event: RecordedEvent) -> bool:
        return event.correlation_id in stories

    async with bench.consuming(react=react, wants=wants, stories_at_once=2) as consumer:
        assert await consumer.wait_for(unwanted[-1], 60)
    assert list(order.values()) == [[1, 3, 5], [2, 4, 6]]
    assert await bench.handled() == dict.fromkeys(range(1, 8), 1)


async def test_event_that_fails_repeats_no_reaction_of_the_others_in_its_chunk(bench: Bench) -> None:
    positions = await bench.open_accounts(5)
    calls: list[int] = []

    async def react(event: RecordedEvent) -> None:
        calls.append(event.global_position)
        if event.global_position == positions[2]:
            raise ValueError("this one cannot be handled")

    async with bench.consuming(react=react) as consumer:
        assert await consumer.wait_for(positions[-1], 60)
    assert sorted(set(calls)) == positions
    assert [position for position in calls if position != positions[2]] == [p for p in positions if p != positions[2]]
    assert [row["position"] for row in await bench.pool.fetch("SELECT position FROM parked")] == [positions[2]]


@pytest.mark.usefixtures("bus_relay")
async def test_outage_longer_than_all_tries_parks_nothing(bench: Bench) -> None:
    calls = 0

    async def react(_event: RecordedEvent) -> None:
        nonlocal calls
        calls += 1
        if calls <= 20:
            raise Unavailable("billing is away")

    async with bench.consuming(react=react) as consumer:
        positions = await bench.open_accounts(1)
        assert await consumer.wait_for(positions[-1], 60)
    assert await bench.pool.fetchval("SELECT count(*) FROM parked") == 0
    assert await bench.handled() == {positions[0]: 1}


@pytest.mark.usefixtures("bus_relay")
@pytest.mark.parametrize("place", ["react", "project"])
async def test_poison_event_is_parked_with_its_reason_and_the_next_one_flows(bench: Bench, place: str) -> None:
    positions: list[int] = []
    tries = 0

    def poisoned(event: RecordedEvent) -> None:
        nonlocal tries
        if positions and event.global_position == positions[1]:
            tries += 1
            raise Rejected("not_found", "at postgresql://billing:hunter2@db/x")

    async def react(event: RecordedEvent) -> None:
        poisoned(event)

    async def failing_project(connection: asyncpg.Connection, event: RecordedEvent) -> None:
        await project(connection, event)
        poisoned(event)

    positions += await bench.open_accounts(4)
    parts: dict[str, Callable[..., Awaitable[None]]] = (
        {"react": react} if place == "react" else {"project": failing_project}
    )
    async with bench.consuming(**parts) as consumer:  # pyright: ignore[reportArgumentType] - one of two keywords
        assert await consumer.wait_for(positions[-1], 60)
    row = await bench.pool.fetchrow("SELECT * FROM parked")
    assert row is not None
    assert (row["durable"], row["position"]) == (LEDGER.name, positions[1])
    assert "not_found" in row["reason"]
    assert "hunter2" not in row["reason"]
    assert tries >= 3
    assert await bench.handled() == dict.fromkeys([positions[0], *positions[2:]], 1)


@pytest.mark.usefixtures("bus_relay")
async def test_of_two_replicas_one_is_active_and_the_other_takes_over(bench: Bench) -> None:
    connections: list[asyncpg.Connection] = []
    taken_over = asyncio.Event()

    async def connect() -> asyncpg.Connection:
        if connections:
            await taken_over.wait()
        connections.append(await bench.connect())
        return connections[-1]

    async with bench.consuming(connect=connect) as first:
        await until_active(first)
        async with bench.consuming() as second:
            before = await bench.open_accounts(5)
            assert await second.wait_for(before[-1], 60), "a standby sees how far the active one is"
            assert (first.is_active, second.is_active) == (True, False)
            # The active session dies and cannot come back before the standby has the lock.
            killing = await bench.connect()
            await killing.execute("SELECT pg_terminate_backend($1)", connections[0].get_server_pid())
            await killing.close()
            await until_active(second)
            taken_over.set()
            after = await bench.open_accounts(5)
            assert await first.wait_for(after[-1], 60)
            assert await second.wait_for(after[-1], 60)
            assert first.is_active != second.is_active
    assert await bench.handled() == dict.fromkeys(before + after, 1)


async def test_position_of_a_foreign_category_is_reached_when_nothing_of_ours_lies_before_it(bench: Bench) -> None:
    async with bench.consuming(pace=PATIENT) as consumer:
        await until_active(consumer)
        positions = await bench.record_facts(3)
        assert await consumer.wait_for(positions[-1], 60)
        assert not await consumer.wait_for(positions[-1] + 1, 0.3)
    assert await bench.handled() == {}


@pytest.mark.usefixtures("bus_relay")
async def test_restarted_consumer_goes_on_where_it_was(bench: Bench) -> None:
    async with bench.consuming() as consumer:
        first = await bench.open_accounts(3)
        assert await consumer.wait_for(first[-1], 60)
    second = await bench.open_accounts(3)
    async with bench.consuming() as consumer:
        assert await consumer.wait_for(second[-1], 60)
    assert await bench.handled() == dict.fromkeys(first + second, 1)
