"""The job decider: what may happen to a job, and what is recorded when it does.

Rules that are not obvious from the code:

- A terminal state is never left. A fact that arrives afterwards becomes one `JobLateFact`, however often it is told.
- A cancel of a job that holds no slot ends it at once. One that holds a slot is asked to end, and is cancelled only
  when its attempt has ended, in whatever way: nothing runs for a cancelled job.
- A success that races a cancel: the cancel was accepted first, so the job is cancelled; the finished training is kept
  beside it as a late fact, and its files stay in storage. From `completing` on a job can no longer be cancelled.
- Facts of an attempt that is not the current one change nothing while the job lives: they stand on their own stream.
- A checkpoint counts only when it is ahead of the last one: a job never resumes further back than it has been.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import assert_never

from services.scheduler.domain import retry_policy
from services.scheduler.domain.job_commands import (
    AttemptFact,
    Cancel,
    CompleteDelivery,
    Delete,
    Dispatch,
    ExplainWait,
    Fact,
    JobCommand,
    Place,
    PreparationFact,
    RecordAttemptCancelled,
    RecordAttemptFailed,
    RecordAttemptStarted,
    RecordCheckpoint,
    RecordDatasetsPacked,
    RecordFundsReserved,
    RecordPreparationRefused,
    RecordTrainingFinished,
    Submit,
)
from services.scheduler.domain.job_state import (
    ATTEMPT_CANCELLED,
    ATTEMPT_FAILED,
    ATTEMPT_PLACED,
    ATTEMPT_STARTED,
    DATASETS_PACKED,
    FUNDS_RESERVED,
    TRAINING_FINISHED,
    Absent,
    Completing,
    Dispatched,
    Ended,
    FactKey,
    Holding,
    Job,
    Preparing,
    Queued,
    Running,
    checkpoint_saved,
)
from shared.contracts.job import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCheckpointed,
    JobCompleted,
    JobDatasetsPacked,
    JobDeleted,
    JobDispatched,
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
from shared.contracts.offers import AUTO
from shared.problems import Rejected

MAX_PRIORITY = 50
MAX_ATTEMPTS = 20
FIRST_TIME = "first_time"


def decide(state: Job, command: JobCommand) -> Sequence[Event]:  # noqa: PLR0911 - one arm for each case
    """The events that the command adds, none if it adds nothing new.

    Raises:
        Rejected: `job_not_found`, `invalid_job_state`, `unknown_provider` or `validation_error`.
    """
    match command:
        case Submit():
            return _submit(state, command)
        case Cancel():
            return _cancel(state, command)
        case Delete():
            return _delete(state, command)
        case Dispatch() | Place():
            return _dispatch_or_place(state, command)
        case ExplainWait():
            return _explain_wait(state, command)
        case CompleteDelivery():
            return _complete_delivery(state, command)
        case _:
            return _record(state, command)


def phase_word(state: Job) -> str:
    """The phase as `CancelJob` answers it: `cancelled`, `cancelling`, or where the job is."""
    match state:
        case Ended():
            return state.outcome
        case Dispatched() | Running() if state.cancel_reason is not None:
            return "cancelling"
        case _:
            return type(state).__name__.lower()


def fact_key(fact: Fact) -> FactKey:  # noqa: PLR0911 - one arm for each case
    """What makes two tellings of a fact the same fact."""
    match fact:
        case RecordDatasetsPacked():
            return (DATASETS_PACKED, None)
        case RecordFundsReserved():
            return (FUNDS_RESERVED, None)
        case RecordPreparationRefused():
            return (fact.kind, None)
        case RecordAttemptStarted():
            return (ATTEMPT_STARTED, fact.attempt_id)
        case RecordCheckpoint():
            return (checkpoint_saved(fact.checkpoint.step), fact.attempt_id)
        case RecordAttemptFailed():
            return (ATTEMPT_FAILED, fact.attempt_id)
        case RecordAttemptCancelled():
            return (ATTEMPT_CANCELLED, fact.attempt_id)
        case RecordTrainingFinished():
            return (TRAINING_FINISHED, fact.attempt_id)
        case _:
            assert_never(fact)


def _submit(state: Job, command: Submit) -> Sequence[Event]:
    if not isinstance(state, Absent):
        return []
    order = command.order
    if order.provider not in {AUTO, *command.providers}:
        offered = ", ".join(command.providers)
        raise Rejected("unknown_provider", f"There is no provider {order.provider!r}; this server has: {offered}.")
    if not 0 <= order.priority <= MAX_PRIORITY:
        raise Rejected("validation_error", f"priority must be 0 to {MAX_PRIORITY}", field="priority")
    if not 1 <= order.max_attempts <= MAX_ATTEMPTS:
        raise Rejected("validation_error", f"max_attempts must be 1 to {MAX_ATTEMPTS}", field="max_attempts")
    return [
        JobSubmitted(
            user_id=order.user_id,
            provider=order.provider,
            priority=order.priority,
            config=order.config,
            dataloader=order.dataloader,
            datasets=order.datasets,
            config_name=order.config_name,
            tracker_run_name=order.tracker_run_name,
            idempotency_key=order.idempotency_key,
            account=order.user_id,
            submitted_at=command.at,
            max_attempts=order.max_attempts,
            requirements=order.requirements,
        )
    ]


def _cancel(state: Job, command: Cancel) -> Sequence[Event]:
    match state:
        case Absent():
            raise _no_such_job()
        case Preparing() | Queued():
            return [JobCancelled(cancelled_at=command.at, reason=command.reason)]
        case Dispatched() | Running():
            if state.cancel_reason is not None:
                return []
            return [JobCancelRequested(requested_at=command.at, reason=command.reason)]
        case Completing():
            raise Rejected("invalid_job_state", "The model is trained; the job can no longer be cancelled.")
        case Ended():
            if state.outcome == "cancelled":
                return []
            raise Rejected("invalid_job_state", f"The job has already {_ended_words(state)}.")
        case _:
            assert_never(state)


def _delete(state: Job, command: Delete) -> Sequence[Event]:
    match state:
        case Absent():
            raise _no_such_job()
        case Ended():
            return [] if state.deleted else [JobDeleted(deleted_at=command.at)]
        case _:
            raise Rejected("invalid_job_state", "Only a job that has ended can be deleted; cancel it first.")


def _dispatch(state: Job, command: Dispatch) -> Sequence[Event]:
    if not isinstance(state, Queued) or (state.not_before is not None and state.not_before > command.at):
        return []
    return [
        JobDispatched(
            attempt_id=command.attempt_id,
            attempt_number=state.attempts + 1,
            provider=state.order.provider,
            resume=state.checkpoint,
            reason=command.reason,
            dispatched_at=command.at,
            basis=command.basis,
        )
    ]


def _dispatch_or_place(state: Job, command: Dispatch | Place) -> Sequence[Event]:
    return _dispatch(state, command) if isinstance(command, Dispatch) else _place(state, command)


def _place(state: Job, command: Place) -> Sequence[Event]:
    if not isinstance(state, Dispatched) or state.attempt_id != command.attempt_id:
        return []
    if state.cancel_reason is not None or (ATTEMPT_PLACED, command.attempt_id) in state.seen:
        return []
    return [
        JobPlaced(
            attempt_id=command.attempt_id,
            offer=command.offer,
            reason=command.reason,
            considered=command.considered,
            placed_at=command.at,
        )
    ]


def _explain_wait(state: Job, command: ExplainWait) -> Sequence[Event]:
    if not isinstance(state, Queued) or state.wait_reason == command.reason:
        return []
    match command.reason:
        case "global_limit" | "user_limit" | "retry_delay" as reason:
            return [
                JobWaitExplained(
                    reason=reason,
                    detail=command.detail,
                    limit=command.limit,
                    holders=list(command.holders),
                    basis=command.basis,
                )
            ]
        case _:
            raise Rejected("validation_error", f"{command.reason!r} is not a reason to wait")


def _complete_delivery(state: Job, command: CompleteDelivery) -> Sequence[Event]:
    match state:
        case Completing():
            missing = sorted({*state.undelivered, *command.missing})
            delivery = "incomplete" if missing else "delivered"
            return [JobCompleted(completed_at=command.at, delivery=delivery, missing=missing)]
        case Ended():
            return []
        case _:
            raise Rejected("invalid_job_state", "Nothing was trained that could have been delivered.")


def _record(state: Job, fact: Fact) -> Sequence[Event]:
    key = fact_key(fact)
    match state:
        case Absent():
            raise _no_such_job()
        case Ended():
            return [] if key in state.seen else [JobLateFact(fact=key[0], attempt_id=key[1], at=fact.at)]
        case _ if key in state.seen:
            return []
        case Preparing():
            return _record_preparation(state, fact) if isinstance(fact, PreparationFact) else []
        case Dispatched() | Running():
            if isinstance(fact, PreparationFact) or fact.attempt_id != state.attempt_id:
                return []
            return _record_attempt(state, fact)
        case Queued() | Completing():
            return []
        case _:
            assert_never(state)


def _record_preparation(state: Preparing, fact: PreparationFact) -> Sequence[Event]:
    match fact:
        case RecordDatasetsPacked():
            events, ready = [JobDatasetsPacked(datasets=fact.datasets)], state.funded
        case RecordFundsReserved():
            reserved = JobFundsReserved(
                reserved_micro_usd=fact.reserved_micro_usd, price_micro_usd_per_hour=fact.price_micro_usd_per_hour
            )
            events, ready = [reserved], state.packed
        case RecordPreparationRefused():
            return [JobFailed(failed_at=fact.at, kind=fact.kind, message=fact.message, advice=fact.advice)]
        case _:
            assert_never(fact)
    return [*events, JobQueued(queued_at=fact.at, reason=FIRST_TIME)] if ready else events


def _record_attempt(state: Holding, fact: AttemptFact) -> Sequence[Event]:
    match fact:
        case RecordAttemptStarted():
            return [JobStarted(attempt_id=fact.attempt_id, started_at=fact.at)]
        case RecordCheckpoint():
            if state.checkpoint is not None and fact.checkpoint.step <= state.checkpoint.step:
                return []
            return [JobCheckpointed(attempt_id=fact.attempt_id, checkpoint=fact.checkpoint)]
        case RecordAttemptFailed():
            return _attempt_failed(state, fact)
        case RecordAttemptCancelled():
            reason = state.cancel_reason or "the run was ended from outside"
            return [JobCancelled(cancelled_at=fact.at, reason=reason)]
        case RecordTrainingFinished():
            return _training_finished(state, fact)
        case _:
            assert_never(fact)


def _attempt_failed(state: Holding, fact: RecordAttemptFailed) -> Sequence[Event]:
    anywhere = state.order.anywhere
    saved_step = state.checkpoint.step if state.checkpoint else 0
    spared = retry_policy.is_spared(fact.kind, anywhere=anywhere, saved_more=saved_step > state.resumed_step)
    failed = JobAttemptFailed(
        attempt_id=fact.attempt_id,
        kind=fact.kind,
        message=fact.message,
        advice=fact.advice,
        failed_at=fact.at,
        spared=spared,
    )
    if state.cancel_reason is not None:
        return [failed, JobCancelled(cancelled_at=fact.at, reason=state.cancel_reason)]
    following = retry_policy.after_failure(
        fact.kind, state.attempts, state.order.max_attempts, spared=state.spared + spared, anywhere=anywhere
    )
    match following:
        case retry_policy.Retry() as retry:
            not_before = fact.at + timedelta(seconds=retry.delay_s) if retry.delay_s else None
            return [failed, JobQueued(queued_at=fact.at, not_before=not_before, reason=retry.reason)]
        case retry_policy.GiveUp() as given_up:
            message = f"{fact.message} (not tried again: {given_up.reason})"
            return [failed, JobFailed(failed_at=fact.at, kind=fact.kind, message=message, advice=fact.advice)]


def _training_finished(state: Holding, fact: RecordTrainingFinished) -> Sequence[Event]:
    if state.cancel_reason is not None:
        return [
            JobCancelled(cancelled_at=fact.at, reason=state.cancel_reason),
            JobLateFact(fact=TRAINING_FINISHED, attempt_id=fact.attempt_id, at=fact.at),
        ]
    return [
        JobTrainingFinished(
            attempt_id=fact.attempt_id,
            steps=fact.steps,
            final_loss=fact.final_loss,
            artifacts=fact.artifacts,
            undelivered=fact.undelivered,
            finished_at=fact.at,
        )
    ]


def _ended_words(state: Ended) -> str:
    return "been cancelled" if state.outcome == "cancelled" else state.outcome


def _no_such_job() -> Rejected:
    return Rejected("job_not_found", "There is no such job.")
