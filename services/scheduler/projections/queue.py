"""The jobs that have not ended, one row each: what the dispatcher shares slots out from.

`domain/queue_row.py` is the whole meaning; this moves rows to and from `scheduler.jobs`. An ended job has no row.
"""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from services.scheduler.domain.queue_policy import RunningJob, WaitingJob
from services.scheduler.domain.queue_row import QueueRow, evolve_row, running_job, waiting_job
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import SCHEDULER_QUEUE
from shared.eventstore.group_commit import Connection
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "queries.sql")
QUERY_TIMEOUT_S = 10.0


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits and who holds a slot, as of one transaction."""

    rows: dict[UUID, QueueRow]

    @property
    def waiting(self) -> Sequence[WaitingJob]:
        """The queued jobs as the policy takes them, in no order."""
        return [job for row in self.rows.values() if (job := waiting_job(row)) is not None]

    @property
    def running(self) -> Sequence[RunningJob]:
        """The jobs that hold a slot."""
        return [job for row in self.rows.values() if (job := running_job(row)) is not None]


async def lock(connection: Connection) -> int:
    """Makes this transaction the only one that dispatches; answers up to which position the rows are folded."""
    position = await connection.fetchval(QUERIES.lock_queue, SCHEDULER_QUEUE.name, timeout=QUERY_TIMEOUT_S)
    if position is None:
        await connection.execute(QUERIES.ensure_checkpoint, SCHEDULER_QUEUE.name, timeout=QUERY_TIMEOUT_S)
        position = await connection.fetchval(QUERIES.lock_queue, SCHEDULER_QUEUE.name, timeout=QUERY_TIMEOUT_S)
    return position


async def raise_checkpoint(connection: Connection, position: int) -> None:
    """The rows are folded up to here."""
    await connection.execute(QUERIES.raise_checkpoint, SCHEDULER_QUEUE.name, position, timeout=QUERY_TIMEOUT_S)


async def project(connection: Connection, recorded: RecordedEvent) -> None:
    """Folds one event into its job's row."""
    await fold(connection, [recorded])


async def fold(connection: Connection, page: Sequence[RecordedEvent]) -> None:
    """Folds events, in log order, into their jobs' rows; each row is read once and, if it changed, written once."""
    ids = list({_job_id(recorded) for recorded in page if recorded.category == "job"})
    stored = await connection.fetch(QUERIES.read_jobs, ids, timeout=QUERY_TIMEOUT_S)
    before = {record["job_id"]: _row(record) for record in stored}
    rows: dict[UUID, QueueRow | None] = {job_id: before.get(job_id) for job_id in ids}
    for recorded in page:
        event = catalogue.decode(recorded) if recorded.category == "job" else None
        if event is not None:
            job_id = _job_id(recorded)
            rows[job_id] = evolve_row(rows[job_id], event, job_id, recorded.global_position)
    changed = [row for job_id, row in rows.items() if row is not None and row != before.get(job_id)]
    gone = [job_id for job_id, row in rows.items() if row is None and job_id in before]
    values = [msgspec.structs.astuple(row) for row in changed]
    await connection.executemany(QUERIES.save_job, values, timeout=QUERY_TIMEOUT_S)
    await connection.execute(QUERIES.drop_jobs, gone, timeout=QUERY_TIMEOUT_S)


def _job_id(recorded: RecordedEvent) -> UUID:
    return UUID(recorded.stream.partition("-")[2])


def _row(record: asyncpg.Record) -> QueueRow:
    return msgspec.convert(dict(record), QueueRow)


async def load(connection: Connection) -> Queue:
    """Every job that waits or holds a slot."""
    stored = await connection.fetch(QUERIES.read_queue, timeout=QUERY_TIMEOUT_S)
    rows = [_row(record) for record in stored]
    return Queue(rows={row.job_id: row for row in rows})
