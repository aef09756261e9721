"""What the job stream alone says of a job. Terminal phases are absorbing, like in the decider that wrote them."""

from datetime import datetime
from typing import Literal, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from services.gateway.domain.training_facts import TrainingFacts, training_facts
from shared.contracts.job import (
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCheckpointed,
    JobCompleted,
    JobDatasetsPacked,
    JobDeleted,
    JobDispatched,
    JobEvent,
    JobFailed,
    JobFundsReserved,
    JobLateFact,
    JobPlaced,
    JobQueued,
    JobStarted,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
)

Phase = Literal[
    "unknown", "submitted", "queued", "dispatching", "running", "completing", "completed", "failed", "cancelled"
]
TERMINAL: frozenset[Phase] = frozenset({"completed", "failed", "cancelled"})


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why something failed and what a person can do."""

    kind: str
    message: str
    advice: str | None = None


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Why a queued job does not run now; `holders` are the jobs in its way."""

    reason: str
    detail: str
    limit: int
    holders: list[str]


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The job stream, folded. `submitted_at` None means no job event has been seen yet."""

    phase: Phase = "unknown"
    user_id: str = ""
    provider: str = ""
    priority: int = 10
    config_name: str | None = None
    tracker_run_name: str | None = None
    training: TrainingFacts = TrainingFacts()
    dataset_ids: list[str] = []
    max_attempts: int = 3
    submitted_at: datetime | None = None
    datasets_ready: bool = False
    funds_ready: bool = False
    queued_at: datetime | None = None
    not_before: datetime | None = None
    queue_reason: str | None = None
    wait: Wait | None = None
    attempt_id: UUID | None = None
    attempt_number: int = 0
    dispatch_reason: str | None = None
    placement_reason: str | None = None
    """Why its newest attempt runs where it does, if there was a choice."""
    started_at: datetime | None = None
    checkpoint_step: int | None = None
    steps: int | None = None
    final_loss: float | None = None
    undelivered: list[str] = []
    delivery: str | None = None
    missing: list[str] = []
    last_failure: Failure | None = None
    cancel_requested_at: datetime | None = None
    cancel_reason: str | None = None
    ended_at: datetime | None = None
    deleted_at: datetime | None = None
    late_facts: int = 0

    @property
    def terminal(self) -> bool:
        """Nothing moves the phase any more."""
        return self.phase in TERMINAL


def evolve_job_facts(facts: JobFacts, event: JobEvent) -> JobFacts:
    """The facts after one more event of the job stream; what comes after the end is kept beside it."""
    match event:
        case JobDeleted():
            return replace(facts, deleted_at=event.deleted_at)
        case JobLateFact():
            return replace(facts, late_facts=facts.late_facts + 1)
        case _ if facts.terminal:
            return facts
        case JobSubmitted() | JobDatasetsPacked() | JobFundsReserved() | JobQueued() | JobWaitExplained():
            return _before_dispatch(facts, event)
        case JobDispatched() | JobPlaced() | JobStarted() | JobCheckpointed() | JobAttemptFailed():
            return _while_running(facts, event)
        case JobTrainingFinished() | JobCancelRequested() | JobCompleted() | JobFailed() | JobCancelled():
            return _towards_end(facts, event)
        case _:
            assert_never(event)


def _before_dispatch(
    facts: JobFacts,
    event: JobSubmitted | JobDatasetsPacked | JobFundsReserved | JobQueued | JobWaitExplained,
) -> JobFacts:
    match event:
        case JobSubmitted():
            return replace(
                facts,
                phase="submitted",
                user_id=event.user_id,
                provider=event.provider,
                priority=event.priority,
                config_name=event.config_name,
                tracker_run_name=event.tracker_run_name,
                training=training_facts(event),
                dataset_ids=[dataset.dataset_id for dataset in event.datasets],
                max_attempts=event.max_attempts,
                submitted_at=event.submitted_at,
            )
        case JobDatasetsPacked():
            return replace(facts, datasets_ready=True)
        case JobFundsReserved():
            return replace(facts, funds_ready=True)
        case JobQueued():
            return replace(
                facts,
                phase="queued",
                queued_at=event.queued_at,
                not_before=event.not_before,
                queue_reason=event.reason,
                wait=None,
            )
        case JobWaitExplained():
            wait = Wait(reason=event.reason, detail=event.detail, limit=event.limit, holders=event.holders)
            return replace(facts, wait=wait)
        case _:
            assert_never(event)


def _while_running(
    facts: JobFacts,
    event: JobDispatched | JobPlaced | JobStarted | JobCheckpointed | JobAttemptFailed,
) -> JobFacts:
    match event:
        case JobDispatched():
            return replace(
                facts,
                phase="dispatching",
                attempt_id=event.attempt_id,
                attempt_number=event.attempt_number,
                dispatch_reason=event.reason,
                placement_reason=None,
                wait=None,
            )
        case JobStarted():
            return replace(facts, phase="running", started_at=facts.started_at or event.started_at)
        case JobCheckpointed():
            return replace(facts, checkpoint_step=event.checkpoint.step)
        case JobAttemptFailed():
            failure = Failure(kind=event.kind, message=event.message, advice=event.advice)
            return replace(facts, last_failure=failure)
        case JobPlaced():
            return replace(facts, placement_reason=event.reason)
        case _:
            assert_never(event)


def _trained(facts: JobFacts, event: JobTrainingFinished) -> JobFacts:
    return replace(
        facts,
        phase="completing",
        steps=event.steps,
        final_loss=event.final_loss,
        undelivered=event.undelivered,
        last_failure=None,
    )


def _towards_end(
    facts: JobFacts, event: JobTrainingFinished | JobCancelRequested | JobCompleted | JobFailed | JobCancelled
) -> JobFacts:
    match event:
        case JobTrainingFinished():
            return _trained(facts, event)
        case JobCancelRequested():
            return replace(facts, cancel_requested_at=event.requested_at, cancel_reason=event.reason)
        case JobCompleted():
            return replace(
                facts,
                phase="completed",
                ended_at=event.completed_at,
                delivery=event.delivery,
                missing=event.missing,
                last_failure=None,
            )
        case JobFailed():
            failure = Failure(kind=event.kind, message=event.message, advice=event.advice)
            return replace(facts, phase="failed", ended_at=event.failed_at, last_failure=failure)
        case JobCancelled():
            return replace(facts, phase="cancelled", ended_at=event.cancelled_at, cancel_reason=event.reason)
        case _:
            assert_never(event)
