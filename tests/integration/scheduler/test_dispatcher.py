"""Slots are given out in one transaction: real Postgres, several dispatchers, each with connections of its own."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain.queue_policy import Limits
from services.scheduler.handlers import job_stream
from services.scheduler.inbound.timers import DispatchLoop
from services.scheduler.projections import queue
from shared.clock import utc_now
from shared.contracts import catalogue
from shared.contracts.envelope import CommandEnvelope, EventMetadata
from shared.contracts.job import (
    Event,
    JobCancelled,
    JobDispatched,
    JobFundsReserved,
    JobQueued,
    JobSubmitted,
    JobWaitExplained,
    ReadQueue,
)
from shared.contracts.subjects import SCHEDULER_QUEUE
from shared.eventstore.api import Append, Appended
from shared.eventstore.group_commit import Connection, Outcome, append_batch
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.rows import Encoded, NewEvent, encode_meta
from shared.ids import new_id
from shared.projection import Projection, rebuild
from tests.support.log import LogDatabase, StoreFor
from tests.support.waiting import eventually

E = TypeVar("E", bound=Event)

LIMITS = Limits(in_all=5, per_user=2)
WAITING_FOR_LOCKS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def an_append(job_id: UUID, version: int, *events: Event) -> Append:
    return Append(
        stream=job_stream(job_id),
        expected_version=version,
        events=events,
        meta=EventMetadata(),
        correlation_id=job_id,
    )


def a_queued_job(
    user: str, *, priority: int = 10, queued_at: datetime = T0, not_before: datetime | None = None
) -> Append:
    submitted = JobSubmitted(
        user_id=user,
        provider="local",
        priority=priority,
        config={},
        dataloader=[],
        datasets=[],
        config_name=None,
        tracker_run_name=None,
        idempotency_key=None,
        account=user,
        submitted_at=T0,
    )
    funded = JobFundsReserved(reserved_micro_usd=0, price_micro_usd_per_hour=0)
    waits = JobQueued(queued_at=queued_at, not_before=not_before, reason="first_time")
    return an_append(new_id(), 0, submitted, funded, waits)


@pytest.fixture
async def store(store_for: StoreFor) -> PostgresEventStore:
    return await store_for("scheduler")


@asynccontextmanager
async def a_dispatcher(database: LogDatabase, limits: Limits = LIMITS) -> AsyncGenerator[Dispatcher]:
    """A dispatcher as a replica of its own: nothing shared with another but the database."""
    async with asyncpg.create_pool(database.dsn("scheduler"), min_size=1, max_size=3) as pool:
        yield Dispatcher(pool, PostgresEventStore(pool), utc_now, limits)


async def add(store: PostgresEventStore, *jobs: Append) -> list[UUID]:
    for job in jobs:
        await store.append(job)
    return [job.correlation_id for job in jobs]


async def told(store: PostgresEventStore, kind: type[E]) -> list[tuple[UUID, E]]:
    """Every event of one kind with its job, in log order."""
    events = [
        (recorded.correlation_id, catalogue.decode(recorded)) for recorded in await store.read(categories=["job"])
    ]
    return [(job_id, event) for job_id, event in events if isinstance(event, kind)]


async def placed(store: PostgresEventStore) -> list[UUID]:
    return [job_id for job_id, _ in await told(store, JobDispatched)]


async def end(store: PostgresEventStore, job_id: UUID) -> None:
    version = len(await store.read_stream(job_stream(job_id)))
    await store.append(an_append(job_id, version, JobCancelled(cancelled_at=T0, reason="")))


async def read_queue(dispatcher: Dispatcher) -> dict[str, list[dict[str, object]]]:
    envelope = CommandEnvelope(command_id=uuid4(), correlation_id=uuid4(), payload=msgspec.Raw(b"{}"))
    return (await dispatcher.read_queue(ReadQueue(), envelope)).data


async def test_racing_submits_and_three_dispatchers_fill_exactly_the_slots(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    """R14: 24 jobs of 8 users are submitted while three replicas dispatch as fast as they can: 5 slots, 2 a user."""
    arriving = asyncio.Event()

    async def dispatch_until_quiet() -> None:
        async with a_dispatcher(log_database) as dispatcher:
            while not arriving.is_set() or (await dispatcher.run_round()).dispatched:
                await dispatcher.run_round()

    async def submit_all() -> None:
        jobs = [a_queued_job(f"user-{number % 8}") for number in range(24)]
        await asyncio.gather(*(add(store, job) for job in jobs))
        arriving.set()

    async with asyncio.timeout(240):
        await asyncio.gather(submit_all(), *(dispatch_until_quiet() for _ in range(3)))
    jobs = await placed(store)
    assert len(jobs) == len(set(jobs)) == 5
    users = {job_id: event.user_id for job_id, event in await told(store, JobSubmitted)}
    assert max(Counter(users[job_id] for job_id in jobs).values()) <= 2


class Overtaken(PostgresEventStore):
    """Before it appends, an urgent job comes in and another replica runs a round: done, or waiting for our lock."""

    def __init__(self, pool: asyncpg.Pool, other: Dispatcher, tasks: asyncio.TaskGroup) -> None:
        super().__init__(pool)
        self._own_pool = pool
        self._other = other
        self._tasks = tasks

    async def append_in(self, connection: Connection, appends: Sequence[Append]) -> list[Outcome]:
        await add(self, a_queued_job("urgent", priority=40))
        overtaking = self._tasks.create_task(self._other.run_round())

        async def is_done_or_waits() -> bool:
            return overtaking.done() or await self._own_pool.fetchval(WAITING_FOR_LOCKS) > 0

        await eventually(is_done_or_waits)
        return await super().append_in(connection, appends)


async def test_a_replica_that_sees_another_queue_in_the_middle_of_a_round_waits_for_its_end(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    holders = await add(store, *(a_queued_job(f"user-{number}") for number in range(5)))
    async with a_dispatcher(log_database) as other, asyncio.timeout(240):
        await other.run_round()
        await add(store, *(a_queued_job(f"user-{number}") for number in range(5)))
        await other.run_round()  # their waiting is explained, so no explanation moves their streams later
        for holder in holders:
            await end(store, holder)
        async with a_dispatcher(log_database, Limits(in_all=0, per_user=2)) as idle:
            await idle.run_round()  # and nothing is left to fold: only the lock keeps the two apart
        async with (
            asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=5) as pool,
            asyncio.TaskGroup() as tasks,
        ):
            overtaken = Overtaken(pool, other, tasks)
            await Dispatcher(pool, overtaken, utc_now, LIMITS).run_round()
            await overtaken.close()
    assert len(await placed(store)) == 10


async def test_slots_that_become_free_are_given_out_exactly_again(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    async with (
        a_dispatcher(log_database) as one,
        a_dispatcher(log_database) as two,
        a_dispatcher(log_database) as three,
    ):
        await add(store, *(a_queued_job(f"user-{number}") for number in range(12)))
        await asyncio.gather(one.run_round(), two.run_round(), three.run_round())
        first = await placed(store)
        for job_id in first[:3]:
            await end(store, job_id)
        rounds = await asyncio.gather(one.run_round(), two.run_round(), three.run_round())
    assert len(first) == 5
    assert sum(done.dispatched for done in rounds) == 3
    assert len(set(await placed(store))) == 8


async def test_priority_then_queue_time_then_log_position_decide(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    second, fourth, third, first = await add(
        store,
        a_queued_job("a", queued_at=T0),
        a_queued_job("b", priority=0, queued_at=T0 - timedelta(hours=1)),
        a_queued_job("c", queued_at=T0),
        a_queued_job("d", priority=40, queued_at=T0 + timedelta(hours=1)),
    )
    async with a_dispatcher(log_database) as dispatcher:
        await dispatcher.run_round()
    assert await placed(store) == [first, second, third, fourth]


async def test_a_waiting_job_is_told_once_whose_slots_it_waits_for(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    held = await add(store, a_queued_job("alice"), a_queued_job("alice"))
    (waiting,) = await add(store, a_queued_job("alice"))
    async with a_dispatcher(log_database) as dispatcher:
        for _ in range(3):
            await dispatcher.run_round()
    ((job_id, wait),) = await told(store, JobWaitExplained)
    assert job_id == waiting
    assert (wait.reason, wait.limit, set(wait.holders)) == ("user_limit", 2, set(map(str, held)))


async def test_a_delayed_retry_waits_and_says_when_it_is_due(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    due_at = utc_now() + timedelta(hours=1)
    await add(store, a_queued_job("alice", not_before=due_at))
    async with a_dispatcher(log_database) as dispatcher:
        done = await dispatcher.run_round()
    assert (done.dispatched, done.due_at) == (0, due_at)
    ((_, wait),) = await told(store, JobWaitExplained)
    assert wait.reason == "retry_delay"


class CancelledMeanwhile(PostgresEventStore):
    """Somebody cancels the first job between the dispatcher's look and its append."""

    async def append_in(self, connection: Connection, appends: Sequence[Append]) -> list[Outcome]:
        for append in appends[:1]:
            cancelled = JobCancelled(cancelled_at=T0, reason="meanwhile")
            await self.append(an_append(append.correlation_id, append.expected_version, cancelled))
        return await super().append_in(connection, appends)


async def test_a_round_overtaken_by_a_cancel_writes_nothing_and_the_next_one_starts_the_others(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    _, other = await add(store, a_queued_job("alice"), a_queued_job("bob"))
    async with asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=4) as pool:
        racing = CancelledMeanwhile(pool)
        done = await Dispatcher(pool, racing, utc_now, LIMITS).run_round()
        await racing.close()
    assert (done.dispatched, done.unfinished) == (0, True)
    assert await placed(store) == []
    async with a_dispatcher(log_database) as dispatcher:
        assert (await dispatcher.run_round()).dispatched == 1
    assert await placed(store) == [other]


async def append_unreadable(database: LogDatabase, job_id: UUID, version: int) -> None:
    """An event of the job that the code cannot read, as a writer of another version might leave it."""
    event = NewEvent(new_id(), "job.wait_explained.v1", b'{"limit": "many"}')
    command = Encoded(
        stream=job_stream(job_id),
        expected_version=version,
        correlation_id=job_id,
        meta=encode_meta(EventMetadata()),
        events=(event,),
        size_bytes=len(event.data),
    )
    connection = await asyncpg.connect(database.dsn("scheduler"))
    try:
        [outcome] = await append_batch(connection, [command])
    finally:
        await connection.close()
    assert isinstance(outcome, Appended)


async def test_a_job_with_an_event_nobody_can_read_leaves_the_line_and_holds_up_no_other(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    """The first in line is the broken one; with one slot it would be chosen again and again."""
    [holder, broken, next_one] = await add(store, *(a_queued_job(user) for user in "abc"))
    async with a_dispatcher(log_database, Limits(in_all=1, per_user=1)) as dispatcher:
        await dispatcher.run_round()
        await append_unreadable(log_database, holder, len(await store.read_stream(job_stream(holder))))
        await append_unreadable(log_database, broken, len(await store.read_stream(job_stream(broken))))
        assert (await dispatcher.run_round()).dispatched == 0  # the holder keeps its slot
        await end(store, holder)
        await dispatcher.run_round()
        seen = await read_queue(dispatcher)
        assert [row["job_id"] for row in seen["running"]] == [str(next_one)]
        assert seen["waiting"] == []
        async with asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=2) as pool:
            folded = Projection(name="queue", tables=("jobs",), durable=SCHEDULER_QUEUE, project=queue.project)
            [rebuilt] = await rebuild(pool, store, [folded])
        assert rebuilt.equal


async def test_a_round_that_fails_leaves_no_slot_taken(log_database: LogDatabase, store: PostgresEventStore) -> None:
    class Broken(PostgresEventStore):
        async def append_in(self, connection: Connection, appends: Sequence[Append]) -> list[Outcome]:
            await super().append_in(connection, appends)
            raise ConnectionResetError

    await add(store, a_queued_job("alice"))
    async with asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=4) as pool:
        with pytest.raises(ConnectionResetError):
            await Dispatcher(pool, Broken(pool), utc_now, LIMITS).run_round()
    assert await placed(store) == []
    async with a_dispatcher(log_database) as dispatcher:
        assert (await dispatcher.run_round()).dispatched == 1


async def test_the_queue_is_read_in_the_order_in_which_it_will_run(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    (running,) = await add(store, a_queued_job("alice"))
    async with a_dispatcher(log_database, Limits(in_all=1, per_user=1)) as dispatcher:
        await dispatcher.run_round()
        low, high = await add(store, a_queued_job("bob", priority=0), a_queued_job("carol", priority=40))
        answer = await read_queue(dispatcher)
    assert [entry["job_id"] for entry in answer["running"]] == [str(running)]
    assert [(entry["job_id"], entry["position"], entry["reason"]) for entry in answer["waiting"]] == [
        (str(high), 1, "global_limit"),
        (str(low), 2, "global_limit"),
    ]


async def test_a_rebuilt_queue_is_byte_equal(log_database: LogDatabase, store: PostgresEventStore) -> None:
    jobs = await add(store, *(a_queued_job(f"user-{number}") for number in range(8)))
    async with a_dispatcher(log_database) as dispatcher:
        await dispatcher.run_round()
        await end(store, jobs[0])
        await dispatcher.run_round()
    projection = Projection(name="queue", tables=("jobs",), durable=SCHEDULER_QUEUE, project=queue.project)
    async with asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=2) as pool:
        (rebuilt,) = await rebuild(pool, store, [projection])
    assert rebuilt.equal
    assert rebuilt.rows == 7


async def test_rows_of_the_queue_are_json_friendly(log_database: LogDatabase, store: PostgresEventStore) -> None:
    await add(store, a_queued_job("alice"), a_queued_job("alice"), a_queued_job("alice"))
    async with a_dispatcher(log_database) as dispatcher:
        answer = await read_queue(dispatcher)
    assert cast("object", msgspec.json.decode(msgspec.json.encode(answer))) == answer


# ---- the loop --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def looping(database: LogDatabase) -> AsyncGenerator[None]:
    """The dispatch loop as the service runs it."""
    stop = asyncio.Event()
    async with (
        asyncpg.create_pool(database.dsn("scheduler"), min_size=1, max_size=5) as pool,
        asyncio.timeout(240),
        asyncio.TaskGroup() as tasks,
    ):
        own = PostgresEventStore(pool)
        running = tasks.create_task(DispatchLoop(Dispatcher(pool, own, utc_now, LIMITS), own, utc_now).run(stop))
        try:
            yield
        finally:
            stop.set()
            await running
            await own.close()


async def test_a_committed_job_wakes_the_loop(log_database: LogDatabase, store: PostgresEventStore) -> None:
    async with looping(log_database):
        (job_id,) = await add(store, a_queued_job("alice"))

        async def runs() -> bool:
            return await placed(store) == [job_id]

        await eventually(runs)


async def test_a_retry_runs_when_it_falls_due_although_nothing_is_committed_then(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    not_before = utc_now() + timedelta(seconds=0.4)
    await add(store, a_queued_job("alice", not_before=not_before))
    async with looping(log_database):

        async def runs() -> bool:
            return await placed(store) != []

        await eventually(runs)
    ((_, event),) = await told(store, JobDispatched)
    assert event.dispatched_at >= not_before


async def test_reading_the_queue_hides_nothing_from_the_next_round(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    (job_id,) = await add(store, a_queued_job("alice"))
    async with a_dispatcher(log_database) as dispatcher:
        answer = await read_queue(dispatcher)
        assert [(entry["job_id"], entry["reason"]) for entry in answer["waiting"]] == [(str(job_id), "dispatching")]
        done = await dispatcher.run_round_if_changed()
        assert done is not None
        assert done.dispatched == 1


async def test_many_readers_of_the_queue_leave_connections_for_the_one_that_is_served(
    log_database: LogDatabase, store: PostgresEventStore
) -> None:
    """Three connections, and 12 who want the queue, each of whom needs a second connection once it has the lock."""
    await add(store, a_queued_job("alice"))
    async with a_dispatcher(log_database) as dispatcher, asyncio.timeout(240):
        answers = await asyncio.gather(*(read_queue(dispatcher) for _ in range(12)))
    assert len(answers) == 12


async def test_a_round_without_news_looks_at_nothing(log_database: LogDatabase, store: PostgresEventStore) -> None:
    await add(store, a_queued_job("alice"))
    async with a_dispatcher(log_database) as dispatcher:
        await dispatcher.run_round()
        assert await dispatcher.run_round_if_changed() is None  # its own dispatch is no news
        (job_id,) = await placed(store)
        await end(store, job_id)
        assert await dispatcher.run_round_if_changed() is not None
        assert await dispatcher.run_round_if_changed() is None
