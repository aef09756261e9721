"""What the real dispatchers decided, racing on a real log, is decided again by what-if: nothing is left out."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from random import Random
from uuid import UUID

import asyncpg

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain.job_commands import (
    Cancel,
    JobCommand,
    RecordAttemptCancelled,
    RecordAttemptFailed,
    RecordFundsReserved,
    RecordTrainingFinished,
    Submit,
)
from services.scheduler.domain.queue_policy import Limits
from services.scheduler.handlers import JOB, job_stream
from shared.clock import utc_now
from shared.contracts import catalogue
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import JobDispatched, JobWaitExplained, SubmitJob
from shared.decider import execute
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from tests.support.log import LogDatabase, StoreFor
from tests.support.waiting import eventually
from tests.support.whatif import decided_again

LIMITS = Limits(in_all=4, per_user=2)
JOBS = 40


@asynccontextmanager
async def a_dispatcher(database: LogDatabase) -> AsyncGenerator[Dispatcher]:
    async with asyncpg.create_pool(database.dsn("scheduler"), min_size=1, max_size=3) as pool:
        yield Dispatcher(pool, PostgresEventStore(pool), utc_now, LIMITS)


class Users:
    """Submits, finishes, fails and cancels jobs at random, as fast as the log takes it."""

    def __init__(self, store: PostgresEventStore, seed: int) -> None:
        self._store = store
        self._random = Random(seed)  # noqa: S311 - a repeatable mix
        self.are_done = asyncio.Event()

    async def queued(self, number: int) -> UUID:
        """Submits a job and pays for it."""
        job_id = new_id()
        order = SubmitJob(
            job_id=job_id,
            user_id=f"user-{number % 4}",
            provider="local",
            priority=self._random.choice([0, 10, 10, 30]),
            config={},
            dataloader=[],
            datasets=[],
        )
        await self.tell(job_id, Submit(order=order, providers=("local",), at=utc_now()))
        reserved = RecordFundsReserved(reserved_micro_usd=0, price_micro_usd_per_hour=0, at=utc_now())
        await self.tell(job_id, reserved)
        return job_id

    async def one(self, number: int) -> None:
        """One job's life, until nothing more is asked of it."""
        job_id = await self.queued(number)
        if self._random.random() < 0.2:
            await self.tell(job_id, Cancel(reason="asked", at=utc_now()))
        ended: set[UUID] = set()
        while not await self._is_over(job_id):
            await eventually(lambda: self._moves(job_id, ended), 60)

    async def _moves(self, job_id: UUID, ended: set[UUID]) -> bool:
        """Ends the attempt that has a slot now, in some way; whether there was one, or the job is over."""
        history = [catalogue.decode(one) for one in await self._store.read_stream(job_stream(job_id))]
        attempts = [event.attempt_id for event in history if isinstance(event, JobDispatched)]
        if not attempts or attempts[-1] in ended:
            return await self._is_over(job_id)
        ended.add(attempts[-1])
        await self.tell(job_id, self._end(attempts[-1]))
        return True

    def _end(self, attempt_id: UUID) -> JobCommand:
        chance, now = self._random.random(), utc_now()
        if chance < 0.3:
            return RecordAttemptFailed(attempt_id=attempt_id, kind="preempted", message="m", advice=None, at=now)
        if chance < 0.4:
            return RecordAttemptCancelled(attempt_id=attempt_id, at=now)
        return RecordTrainingFinished(
            attempt_id=attempt_id, steps=1, final_loss=None, artifacts=[], undelivered=[], at=now
        )

    async def tell(self, job_id: UUID, command: JobCommand) -> None:
        """Records it on the job, as the service does."""
        await execute(self._store, JOB, job_stream(job_id), command, meta=EventMetadata(), correlation_id=job_id)

    async def _is_over(self, job_id: UUID) -> bool:
        types = {one.type for one in await self._store.read_stream(job_stream(job_id))}
        return bool(types & {"job.training_finished.v1", "job.failed.v1", "job.cancelled.v1"})


async def the_log(store: PostgresEventStore) -> tuple[list[RecordedEvent], int]:
    """Every event, and how many decisions of dispatchers are among them."""
    events: list[RecordedEvent] = []
    while page := await store.read(after=events[-1].global_position if events else 0):
        events += page
    types = [catalogue.event_type(kind) for kind in (JobDispatched, JobWaitExplained)]
    return events, sum(one.type in types for one in events)


async def test_a_burst_that_takes_many_rounds_to_explain_is_reproduced(
    log_database: LogDatabase, store_for: StoreFor
) -> None:
    """130 jobs at once, 50 explanations a round; those with a slot are lost, and wait for their retry's time."""
    store = await store_for("scheduler")
    users = Users(store, seed=6)
    async with asyncio.TaskGroup() as submits:
        for number in range(130):
            submits.create_task(users.queued(number))
    async with a_dispatcher(log_database) as dispatcher:
        while (await dispatcher.run_round()).unfinished:
            continue
        for one in await store.read(categories=["job"]):
            event = catalogue.decode(one)
            if isinstance(event, JobDispatched):
                lost = RecordAttemptFailed(
                    attempt_id=event.attempt_id, kind="lost", message="m", advice=None, at=utc_now()
                )
                await users.tell(one.correlation_id, lost)
        while (await dispatcher.run_round()).unfinished:
            continue
    events, written = await the_log(store)
    decisions = decided_again(events)
    assert decisions.first_difference is None
    assert decisions.reproduced == decisions.recorded == written + decisions.retries
    assert (decisions.dispatches, decisions.retries) == (8, 4)
    assert decisions.explanations >= 126 + 4


async def test_decisions_of_racing_dispatchers_are_all_reproduced(
    log_database: LogDatabase, store_for: StoreFor
) -> None:
    """Two replicas, 40 jobs that come, end, fail and are cancelled while rounds are under way."""
    store = await store_for("scheduler")
    users = Users(store, seed=5)

    async def dispatch() -> None:
        async with a_dispatcher(log_database) as dispatcher:
            while not users.are_done.is_set():
                await dispatcher.run_round()

    async def live() -> None:
        async with asyncio.TaskGroup() as jobs:
            for number in range(JOBS):
                jobs.create_task(users.one(number))
        users.are_done.set()

    async with asyncio.timeout(240):
        await asyncio.gather(live(), dispatch(), dispatch())
    events, written = await the_log(store)
    decisions = decided_again(events)
    assert decisions.first_difference is None
    assert decisions.reproduced == decisions.recorded == written + decisions.retries
    assert decisions.without_basis == 0
    assert decisions.dispatches >= JOBS // 2
    assert decisions.retries > 0
