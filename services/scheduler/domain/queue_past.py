"""The queue as it was: who held slots, who waited, and the reasons that were recorded by then."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.scheduler.domain.queue_policy import queue_order
from services.scheduler.domain.queue_row import QueueRow, evolve_row, waiting_job
from shared.contracts.job import DecisionBasis, Event, JobDispatched, JobWaitExplained

MAX_WAITING = 10_000
"""How many of the waiting jobs an answer tells, the first in line first."""

UNDECIDED = "undecided"
"""The reason of a job that no round had looked at yet."""


class PastQueue(msgspec.Struct, frozen=True, kw_only=True):
    """Live jobs at a position, and the last explanation of each."""

    rows: dict[UUID, QueueRow]
    explained: dict[UUID, JobWaitExplained]
    basis: DecisionBasis | None
    """Of the last round whose decisions are seen here."""


def fold_queue(events: Iterable[tuple[UUID, Event, int]]) -> PastQueue:
    """The queue that (job, event, position) in log order add up to."""
    rows: dict[UUID, QueueRow] = {}
    explained: dict[UUID, JobWaitExplained] = {}
    basis: DecisionBasis | None = None
    for job_id, event, position in events:
        row = evolve_row(rows.get(job_id), event, job_id, position)
        if row is None:
            rows.pop(job_id, None)
        else:
            rows[job_id] = row
        if isinstance(event, JobWaitExplained):
            explained[job_id] = event
        if isinstance(event, JobDispatched | JobWaitExplained):
            basis = event.basis or basis
    return PastQueue(rows=rows, explained=explained, basis=basis)


def told(past: PastQueue) -> dict[str, Any]:
    """The answer to `ReadQueue` for a position of the past."""
    held = sorted((row for row in past.rows.values() if row.phase == "holding"), key=lambda row: row.position)
    waiting = sorted((job for row in past.rows.values() if (job := waiting_job(row)) is not None), key=queue_order)
    basis = past.basis
    return {
        "running": [_running(row) for row in held],
        "waiting": [
            _waiting(past.rows[job.job_id], place, past.explained.get(job.job_id))
            for place, job in enumerate(waiting[:MAX_WAITING], start=1)
        ],
        "waiting_total": len(waiting),
        "limits": {"global": basis.slots_in_all, "per_user": basis.slots_per_user} if basis else None,
    }


def _running(row: QueueRow) -> dict[str, object]:
    return {
        "job_id": str(row.job_id),
        "user_id": row.user_id,
        "provider": row.provider,
        "attempt_number": row.attempt_number,
    }


def _waiting(row: QueueRow, place: int, explained: JobWaitExplained | None) -> dict[str, object]:
    """`wait_reason` is None again once a job is queued anew: what was explained before that counts no more."""
    is_told = explained is not None and row.wait_reason is not None
    return {
        "job_id": str(row.job_id),
        "user_id": row.user_id,
        "priority": row.priority,
        "position": place,
        "reason": row.wait_reason or UNDECIDED,
        "detail": explained.detail if explained and is_told else "no round had looked at it yet",
        "queued_at": _iso(row.queued_at),
        "not_before": _iso(row.not_before),
    }


def _iso(moment: datetime | None) -> str | None:
    return moment and moment.isoformat()
