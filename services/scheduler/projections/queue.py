"""The jobs that have not ended, one row each: what the dispatcher shares slots out from.

`evolve_row` is the whole meaning; the rest moves rows to and from `scheduler.jobs`. A job that has ended has no row.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec

from services.scheduler.domain.queue_policy import RunningJob, WaitingJob
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import (
    Event,
    JobCancelled,
    JobCompleted,
    JobDispatched,
    JobFailed,
    JobQueued,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
)
from shared.contracts.subjects import SCHEDULER_QUEUE
from shared.eventstore.group_commit import Connection
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "queries.sql")
QUERY_TIMEOUT_S = 10.0


class QueueRow(msgspec.Struct, frozen=True, kw_only=True):
    """One live job. `position` is where its last JobQueued stands, 0 before the first."""

    job_id: UUID
    user_id: str
    provider: str
    priority: int
    phase: Literal["preparing", "queued", "holding", "completing"]
    position: int = 0
    queued_at: datetime | None = None
    not_before: datetime | None = None
    attempt_number: int = 0
    wait_reason: str | None = None


def evolve_row(row: QueueRow | None, event: Event, job_id: UUID, position: int) -> QueueRow | None:
    """The row after one more event of the job; None when there is none (any more)."""
    match event:
        case JobSubmitted():
            return QueueRow(
                job_id=job_id,
                user_id=event.user_id,
                provider=event.provider,
                priority=event.priority,
                phase="preparing",
            )
        case JobCompleted() | JobFailed() | JobCancelled():
            return None
        case _:
            return row and _evolve_live(row, event, position)


def _evolve_live(row: QueueRow, event: Event, position: int) -> QueueRow:
    match event:
        case JobQueued():
            return msgspec.structs.replace(
                row,
                phase="queued",
                position=position,
                queued_at=event.queued_at,
                not_before=event.not_before,
                wait_reason=None,
            )
        case JobWaitExplained():
            return msgspec.structs.replace(row, wait_reason=event.reason)
        case JobDispatched():
            return msgspec.structs.replace(
                row, phase="holding", attempt_number=event.attempt_number, wait_reason=None, not_before=None
            )
        case JobTrainingFinished():
            return msgspec.structs.replace(row, phase="completing")
        case _:
            return row


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits and who holds a slot, as of one transaction."""

    rows: dict[UUID, QueueRow]

    @property
    def waiting(self) -> Sequence[WaitingJob]:
        """The queued jobs as the policy takes them, in no order."""
        return [
            WaitingJob(
                job_id=row.job_id,
                user_id=row.user_id,
                priority=row.priority,
                queued_at=row.queued_at,
                position=row.position,
                not_before=row.not_before,
            )
            for row in self.rows.values()
            if row.phase == "queued" and row.queued_at is not None
        ]

    @property
    def running(self) -> Sequence[RunningJob]:
        """The jobs that hold a slot."""
        return [
            RunningJob(job_id=row.job_id, user_id=row.user_id) for row in self.rows.values() if row.phase == "holding"
        ]


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
