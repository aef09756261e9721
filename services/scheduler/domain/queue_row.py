"""A live job as the queue sees it, folded from its events: shared by the dispatcher, its table and what-if."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from services.scheduler.domain.queue_policy import RunningJob, WaitingJob
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


def waiting_job(row: QueueRow) -> WaitingJob | None:
    """The job as the policy takes it, if it is queued."""
    if row.phase != "queued" or row.queued_at is None:
        return None
    return WaitingJob(
        job_id=row.job_id,
        user_id=row.user_id,
        priority=row.priority,
        queued_at=row.queued_at,
        position=row.position,
        not_before=row.not_before,
    )


def running_job(row: QueueRow) -> RunningJob | None:
    """The job as the policy takes it, if it holds a slot."""
    return RunningJob(job_id=row.job_id, user_id=row.user_id) if row.phase == "holding" else None
