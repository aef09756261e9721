"""Two schedulers, real processes, share out the slots while jobs come in and one of them is killed: exactly as many."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from uuid import UUID

import asyncpg
import pytest

from deploy.embedded.children import REPOSITORY
from shared.clock import utc_now
from shared.contracts.job import Event, JobFailed, JobFundsReserved, JobQueued, JobSubmitted
from shared.eventstore.api import Append
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.rows import recorded
from shared.ids import new_id
from tests.fault.rules import facts_of, slots_kept
from tests.support.bus import ServiceSettings
from tests.support.log import LogDatabase, StoreFor, an_append
from tests.support.waiting import eventually

SLOTS, PER_USER, JOBS, USERS, MOST_URGENT = 5, 2, 40, 8, 50
ROUNDS, JOBS_A_ROUND = 6, 10
_HOLDERS = """
SELECT d.correlation_id FROM log.events d
WHERE d.type = 'job.dispatched.v1' AND NOT EXISTS (
    SELECT FROM log.events e WHERE e.stream = d.stream AND e.type = 'job.failed.v1'
)
"""
_EXPLAINED = "SELECT count(DISTINCT stream) FROM log.events WHERE type = 'job.wait_explained.v1'"


class Schedulers:
    """Scheduler processes on one log and one bus, each under the same settings."""

    def __init__(self, environment: Mapping[str, str], log: asyncpg.Connection) -> None:
        self._environment = {"PATH": os.environ["PATH"], **environment}
        self._log = log
        self.processes: list[subprocess.Popen[bytes]] = []

    def spawn(self) -> subprocess.Popen[bytes]:
        """One more."""
        command = [sys.executable, "-m", "services.scheduler"]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=self._environment, stdout=sys.stderr)
        self.processes.append(process)
        return process

    async def holders(self) -> list[UUID]:
        """The jobs that hold a slot."""
        return [UUID(int=row[0].int) for row in await self._log.fetch(_HOLDERS)]

    async def explained(self) -> int:
        """How many jobs were told why they wait."""
        return await self._log.fetchval(_EXPLAINED)

    async def violations(self) -> list[str]:
        """Moments of the log at which more jobs held slots than there are."""
        rows = await self._log.fetch("SELECT * FROM log.events ORDER BY global_position")
        return slots_kept(facts_of(map(recorded, rows)), in_all=SLOTS, per_user=PER_USER)


@pytest.fixture
async def schedulers(log_database: LogDatabase, service_settings: ServiceSettings) -> AsyncIterator[Schedulers]:
    log = await asyncpg.connect(log_database.superuser_dsn)
    limits = {"scheduler_max_concurrent": SLOTS, "scheduler_user_max_concurrent": PER_USER}
    made = Schedulers(service_settings("scheduler", **limits), log)
    yield made
    for process in made.processes:
        process.kill()
        process.wait(10)
    await log.close()


def _a_queued_job(number: int) -> Append:
    """A later one comes first in the line: whoever looks at the line a moment later sees others at its head."""
    user = f"user-{number % USERS}"
    now = utc_now()
    submitted = JobSubmitted(
        user_id=user,
        provider="local",
        priority=number % MOST_URGENT,
        config={},
        dataloader=[],
        datasets=[],
        config_name=None,
        tracker_run_name=None,
        idempotency_key=None,
        account=user,
        submitted_at=now,
    )
    job_id = new_id()
    events: list[Event] = [
        submitted,
        JobFundsReserved(reserved_micro_usd=0, price_micro_usd_per_hour=0),
        JobQueued(queued_at=now, reason="first_time"),
    ]
    return an_append(f"job-{job_id}", *events, correlation_id=job_id)


async def _end(store: PostgresEventStore, job_id: UUID) -> None:
    version = (await store.read_stream(f"job-{job_id}"))[-1].stream_version
    failed = JobFailed(failed_at=utc_now(), kind="internal", message="", advice=None)
    await store.append(an_append(f"job-{job_id}", failed, expected_version=version, correlation_id=job_id))


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_schedulers_give_racing_jobs_exactly_the_slots_there_are_even_when_one_is_killed(
    schedulers: Schedulers, store_for: StoreFor
) -> None:
    store = await store_for("scheduler")
    for _ in range(2):
        schedulers.spawn()
    await asyncio.gather(*(store.append(_a_queued_job(number)) for number in range(JOBS)))
    await eventually(lambda: _filled(schedulers), 60)
    for round_number in range(ROUNDS):
        ending = await schedulers.holders()
        if round_number == ROUNDS // 2:
            schedulers.processes[0].kill()
        coming = [_a_queued_job(JOBS + round_number * JOBS_A_ROUND + number) for number in range(JOBS_A_ROUND)]
        await asyncio.gather(*map(store.append, coming), *(_end(store, job_id) for job_id in ending))
        await eventually(lambda ending=ending: _filled_anew(schedulers, ending), 60)
    await eventually(lambda: _all_told(schedulers), 60)
    assert len(await schedulers.holders()) == SLOTS
    assert await schedulers.violations() == []


async def _filled(schedulers: Schedulers) -> bool:
    return len(await schedulers.holders()) == SLOTS


async def _filled_anew(schedulers: Schedulers, ended: list[UUID]) -> bool:
    holders = await schedulers.holders()
    return len(holders) == SLOTS and not set(holders) & set(ended)


async def _all_told(schedulers: Schedulers) -> bool:
    """Every job that never got a slot was told why."""
    return await schedulers.explained() >= JOBS + ROUNDS * JOBS_A_ROUND - SLOTS * (ROUNDS + 1)
