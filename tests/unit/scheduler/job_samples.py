"""Events and commands of a job that say only what matters, and the given / when / then of its decider."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.scheduler.domain.job import decide
from services.scheduler.domain.job_commands import (
    JobCommand,
    RecordAttemptFailed,
    RecordCheckpoint,
    RecordTrainingFinished,
    Submit,
)
from services.scheduler.domain.job_state import Absent, Job, evolve
from shared.contracts.job import (
    Checkpoint,
    DatasetRequest,
    Event,
    JobAttemptFailed,
    JobCancelRequested,
    JobCheckpointed,
    JobDatasetsPacked,
    JobDispatched,
    JobFundsReserved,
    JobQueued,
    JobStarted,
    JobSubmitted,
    JobTrainingFinished,
    SubmitJob,
)
from shared.problems import Rejected

T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOB_ID = UUID("0197aaaa-0000-7000-8000-000000000001")
ATTEMPT = UUID("0197aaaa-0000-7000-8000-00000000000a")
OTHER_ATTEMPT = UUID("0197aaaa-0000-7000-8000-00000000000b")


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def state_after(*events: Event) -> Job:
    state: Job = Absent()
    for event in events:
        state = evolve(state, event)
    return state


def when(given: Sequence[Event], command: JobCommand) -> list[Event]:
    return list(decide(state_after(*given), command))


def refused(given: Sequence[Event], command: JobCommand) -> str:
    with pytest.raises(Rejected) as caught:
        decide(state_after(*given), command)
    return caught.value.code


def an_order(*, datasets: bool = True, provider: str = "local", priority: int = 10, max_attempts: int = 3) -> SubmitJob:
    return SubmitJob(
        job_id=JOB_ID,
        user_id="alice",
        provider=provider,
        priority=priority,
        config={"--max_train_steps": 100},
        dataloader=[{"id": "digits"}],
        datasets=[DatasetRequest(dataset_id="digits", path="/data/digits")] if datasets else [],
        max_attempts=max_attempts,
    )


def a_submit(order: SubmitJob | None = None) -> Submit:
    return Submit(order=order or an_order(), providers=("local",), at=T0)


def submitted(*, datasets: bool = True, max_attempts: int = 3) -> JobSubmitted:
    (event,) = decide(Absent(), a_submit(an_order(datasets=datasets, max_attempts=max_attempts)))
    assert isinstance(event, JobSubmitted)
    return event


PACKED = JobDatasetsPacked(datasets=[])
FUNDED = JobFundsReserved(reserved_micro_usd=7, price_micro_usd_per_hour=3600)
QUEUED = JobQueued(queued_at=T0, reason="first_time")
STARTED = JobStarted(attempt_id=ATTEMPT, started_at=T0)
CANCEL_REQUESTED = JobCancelRequested(requested_at=T0, reason="asked by the user")


def dispatched(attempt_id: UUID = ATTEMPT, number: int = 1, resume: Checkpoint | None = None) -> JobDispatched:
    return JobDispatched(
        attempt_id=attempt_id, attempt_number=number, provider="local", resume=resume, reason="first", dispatched_at=T0
    )


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, files=[])


def checkpointed(step: int, attempt_id: UUID = ATTEMPT) -> JobCheckpointed:
    return JobCheckpointed(attempt_id=attempt_id, checkpoint=checkpoint(step))


def attempt_failed(kind: str, attempt_id: UUID = ATTEMPT) -> JobAttemptFailed:
    return JobAttemptFailed(attempt_id=attempt_id, kind=kind, message="it broke", advice=None, failed_at=T0)


def finished(attempt_id: UUID = ATTEMPT) -> JobTrainingFinished:
    return JobTrainingFinished(
        attempt_id=attempt_id, steps=100, final_loss=0.1, artifacts=[], undelivered=[], finished_at=T0
    )


def record_failure(kind: str, attempt_id: UUID = ATTEMPT) -> RecordAttemptFailed:
    return RecordAttemptFailed(attempt_id=attempt_id, kind=kind, message="it broke", advice="mend it", at=T0)


def record_checkpoint(step: int, attempt_id: UUID = ATTEMPT) -> RecordCheckpoint:
    return RecordCheckpoint(attempt_id=attempt_id, checkpoint=checkpoint(step), at=T0)


def record_finish(attempt_id: UUID = ATTEMPT, undelivered: Sequence[str] = ()) -> RecordTrainingFinished:
    return RecordTrainingFinished(
        attempt_id=attempt_id, steps=100, final_loss=0.1, artifacts=[], undelivered=list(undelivered), at=T0
    )


def preparing() -> list[Event]:
    return [submitted()]


def queued(max_attempts: int = 3) -> list[Event]:
    return [submitted(max_attempts=max_attempts), PACKED, FUNDED, QUEUED]


def holding(max_attempts: int = 3) -> list[Event]:
    return [*queued(max_attempts), dispatched()]


def running(max_attempts: int = 3) -> list[Event]:
    return [*holding(max_attempts), STARTED]


def completing() -> list[Event]:
    return [*running(), finished()]
