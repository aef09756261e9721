"""The job decider: given past events, when a command, then events or a code."""

from collections.abc import Callable
from datetime import datetime

import pytest

from services.scheduler.domain.job_commands import (
    Cancel,
    CompleteDelivery,
    Delete,
    Dispatch,
    ExplainWait,
    Fact,
    JobCommand,
    RecordAttemptCancelled,
    RecordAttemptStarted,
    RecordDatasetsPacked,
    RecordFundsReserved,
    RecordPreparationRefused,
)
from shared.contracts.job import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCheckpointed,
    JobCompleted,
    JobDatasetsPacked,
    JobDeleted,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobLateFact,
    JobQueued,
    JobStarted,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
    SubmitJob,
)
from tests.unit.scheduler.job_samples import (
    ATTEMPT,
    CANCEL_REQUESTED,
    FUNDED,
    OTHER_ATTEMPT,
    PACKED,
    QUEUED,
    STARTED,
    T0,
    a_submit,
    an_order,
    attempt_failed,
    checkpoint,
    checkpointed,
    completing,
    dispatched,
    finished,
    holding,
    later,
    preparing,
    queued,
    record_checkpoint,
    record_failure,
    record_finish,
    refused,
    running,
    submitted,
    when,
)

CANCEL = Cancel(reason="asked by the user", at=T0)
DELETE = Delete(at=T0)
RECORD_PACKED = RecordDatasetsPacked(datasets=[], at=T0)
RECORD_FUNDS = RecordFundsReserved(reserved_micro_usd=7, price_micro_usd_per_hour=3600, at=T0)
RECORD_STARTED = RecordAttemptStarted(attempt_id=ATTEMPT, at=T0)
RECORD_CANCELLED = RecordAttemptCancelled(attempt_id=ATTEMPT, at=T0)
COMPLETE = CompleteDelivery(missing=(), at=T0)
CANCELLED = JobCancelled(cancelled_at=T0, reason="asked by the user")
FAILED = JobFailed(failed_at=T0, kind="bad_data", message="no pictures", advice=None)
COMPLETED = JobCompleted(completed_at=T0, delivery="delivered", missing=[])


def dispatch(at: datetime = T0) -> Dispatch:
    return Dispatch(attempt_id=ATTEMPT, reason="first in line", at=at)


def explain(reason: str) -> ExplainWait:
    return ExplainWait(reason=reason, detail="2 of 2", limit=2, holders=("a", "b"))


def refuse(kind: str = "funds_refused") -> RecordPreparationRefused:
    return RecordPreparationRefused(kind=kind, message="no", advice=None, at=T0)


PHASES: dict[str, Callable[[], list[Event]]] = {
    "preparing": preparing,
    "queued": queued,
    "dispatched": holding,
    "running": running,
    "completing": completing,
    "completed": lambda: [*completing(), COMPLETED],
    "failed": lambda: [*preparing(), FAILED],
    "cancelled": lambda: [*queued(), CANCELLED],
}
ENDED = ("completed", "failed", "cancelled")
LIVE = tuple(phase for phase in PHASES if phase not in ENDED)


# ---- submit ----------------------------------------------------------------------------------------------------------


def test_submit_on_empty_stream_records_job_submitted() -> None:
    (event,) = when([], a_submit())
    assert isinstance(event, JobSubmitted)
    assert (event.user_id, event.account, event.submitted_at) == ("alice", "alice", T0)


@pytest.mark.parametrize("phase", PHASES)
def test_submit_again_in_any_phase_records_nothing(phase: str) -> None:
    assert when(PHASES[phase](), a_submit()) == []


def test_submit_to_a_provider_that_is_not_offered_is_refused() -> None:
    assert refused([], a_submit(an_order(provider="moon"))) == "unknown_provider"


@pytest.mark.parametrize("order", [an_order(priority=51), an_order(priority=-1), an_order(max_attempts=0)])
def test_submit_out_of_range_is_refused(order: SubmitJob) -> None:
    assert refused([], a_submit(order)) == "validation_error"


# ---- preparation -----------------------------------------------------------------------------------------------------


def test_data_alone_does_not_queue_the_job() -> None:
    assert when(preparing(), RECORD_PACKED) == [JobDatasetsPacked(datasets=[])]


def test_funds_alone_do_not_queue_the_job() -> None:
    assert when(preparing(), RECORD_FUNDS) == [FUNDED]


@pytest.mark.parametrize(("there", "comes"), [(PACKED, RECORD_FUNDS), (FUNDED, RECORD_PACKED)])
def test_data_and_funds_in_any_order_queue_the_job(there: Event, comes: JobCommand) -> None:
    kinds = [type(event) for event in when([submitted(), there], comes)]
    assert kinds in ([JobFundsReserved, JobQueued], [JobDatasetsPacked, JobQueued])


def test_a_job_without_datasets_is_queued_by_its_funds() -> None:
    events = when([submitted(datasets=False)], RECORD_FUNDS)
    assert events == [FUNDED, JobQueued(queued_at=T0, reason="first_time")]


@pytest.mark.parametrize(("there", "again"), [(PACKED, RECORD_PACKED), (FUNDED, RECORD_FUNDS)])
def test_data_or_funds_told_twice_are_recorded_once(there: Event, again: JobCommand) -> None:
    assert when([submitted(), there], again) == []
    assert when([submitted(), PACKED, FUNDED, QUEUED], again) == []


@pytest.mark.parametrize("kind", ["dataset_refused", "funds_refused"])
def test_refused_preparation_fails_the_job(kind: str) -> None:
    assert when(preparing(), refuse(kind)) == [JobFailed(failed_at=T0, kind=kind, message="no", advice=None)]


def test_the_refusal_that_ended_the_job_told_again_records_nothing() -> None:
    failed = JobFailed(failed_at=T0, kind="funds_refused", message="no", advice=None)
    assert when([*preparing(), failed], refuse("funds_refused")) == []


# ---- slots -----------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_dispatched_as_attempt_one() -> None:
    (event,) = when(queued(), dispatch())
    assert isinstance(event, JobDispatched)
    assert (event.attempt_id, event.attempt_number, event.resume) == (ATTEMPT, 1, None)


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "queued"])
def test_only_a_queued_job_is_dispatched(phase: str) -> None:
    assert when(PHASES[phase](), dispatch()) == []


def test_a_delayed_retry_is_dispatched_when_its_time_has_come_and_not_before() -> None:
    past = [*running(), attempt_failed("lost"), JobQueued(queued_at=T0, not_before=later(10), reason="retry")]
    assert when(past, dispatch(later(9.9))) == []
    assert len(when(past, dispatch(later(10)))) == 1


def test_the_next_attempt_resumes_from_the_last_checkpoint() -> None:
    past = [*running(), checkpointed(50), checkpointed(75), attempt_failed("preempted"), QUEUED]
    (event,) = when(past, Dispatch(attempt_id=OTHER_ATTEMPT, reason="r", at=T0))
    assert isinstance(event, JobDispatched)
    assert (event.attempt_number, event.resume) == (2, checkpoint(75))


def test_a_wait_is_explained_once_per_changed_reason() -> None:
    (explained,) = when(queued(), explain("user_limit"))
    assert isinstance(explained, JobWaitExplained)
    assert when([*queued(), explained], explain("user_limit")) == []
    assert len(when([*queued(), explained], explain("global_limit"))) == 1


def test_a_job_that_is_back_in_the_queue_is_explained_anew() -> None:
    explained = JobWaitExplained(reason="user_limit", detail="", limit=2, holders=[])
    past = [*queued(), explained, dispatched(), attempt_failed("preempted"), QUEUED]
    assert len(when(past, explain("user_limit"))) == 1


# ---- the attempt -----------------------------------------------------------------------------------------------------


def test_hello_of_the_attempt_starts_the_job_once() -> None:
    assert when(holding(), RECORD_STARTED) == [STARTED]
    assert when(running(), RECORD_STARTED) == []


def test_a_checkpoint_ahead_of_the_last_one_is_recorded() -> None:
    assert when(running(), record_checkpoint(50)) == [checkpointed(50)]
    past = [*running(), checkpointed(50)]
    assert when(past, record_checkpoint(50)) == []
    assert when(past, record_checkpoint(25)) == []
    assert when(past, record_checkpoint(75)) == [checkpointed(75)]


FACTS_OF_ANOTHER_ATTEMPT: list[Fact] = [
    RecordAttemptStarted(attempt_id=OTHER_ATTEMPT, at=T0),
    RecordAttemptCancelled(attempt_id=OTHER_ATTEMPT, at=T0),
    record_checkpoint(50, OTHER_ATTEMPT),
    record_failure("lost", OTHER_ATTEMPT),
    record_finish(OTHER_ATTEMPT),
]


@pytest.mark.parametrize("fact", FACTS_OF_ANOTHER_ATTEMPT)
@pytest.mark.parametrize("phase", ["preparing", "queued", "dispatched", "running", "completing"])
def test_facts_of_an_attempt_that_is_not_the_current_one_change_nothing(phase: str, fact: Fact) -> None:
    assert when(PHASES[phase](), fact) == []


def test_a_preempted_attempt_is_tried_again_at_once() -> None:
    failed, again = when(running(), record_failure("preempted"))
    assert isinstance(failed, JobAttemptFailed)
    assert isinstance(again, JobQueued)
    assert again.not_before is None
    assert again.reason == "retry after preempted: attempt 2 of 3 at once"


def test_a_lost_attempt_is_tried_again_after_a_delay() -> None:
    _, again = when(running(), record_failure("lost"))
    assert isinstance(again, JobQueued)
    assert again.not_before == later(10)


@pytest.mark.parametrize("kind", ["bad_config", "out_of_memory", "start_refused", "gremlins"])
def test_a_failure_that_would_repeat_fails_the_job_with_its_advice(kind: str) -> None:
    failed, ended = when(holding(), record_failure(kind))
    assert isinstance(failed, JobAttemptFailed)
    assert isinstance(ended, JobFailed)
    assert (ended.kind, ended.advice) == (kind, "mend it")
    assert "it broke" in ended.message


def test_the_last_attempt_that_is_lost_fails_the_job() -> None:
    _, ended = when(running(max_attempts=1), record_failure("lost"))
    assert isinstance(ended, JobFailed)
    assert "attempt 1 of 1 was the last" in ended.message


def test_a_failure_told_twice_is_recorded_once() -> None:
    past = running()
    past += when(past, record_failure("lost"))
    assert when(past, record_failure("lost")) == []
    past += when(past, Dispatch(attempt_id=OTHER_ATTEMPT, reason="r", at=later(60)))
    assert when(past, record_failure("lost")) == []


def test_an_attempt_that_was_cancelled_from_outside_cancels_the_job() -> None:
    assert when(running(), RECORD_CANCELLED) == [JobCancelled(cancelled_at=T0, reason="the run was ended from outside")]


# ---- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["dispatched", "running"])
def test_finished_training_leads_to_completing(phase: str) -> None:
    (event,) = when(PHASES[phase](), record_finish())
    assert isinstance(event, JobTrainingFinished)


def test_a_job_completes_when_delivery_is_confirmed() -> None:
    assert when(completing(), COMPLETE) == [COMPLETED]


def test_what_never_arrived_makes_delivery_incomplete_and_not_the_training_failed() -> None:
    past = [*running(), *when(running(), record_finish(undelivered=["b"]))]
    (event,) = when(past, CompleteDelivery(missing=("a", "b"), at=T0))
    assert event == JobCompleted(completed_at=T0, delivery="incomplete", missing=["a", "b"])


def test_finishing_and_completing_told_twice_record_nothing() -> None:
    assert when(completing(), record_finish()) == []
    assert when([*completing(), COMPLETED], COMPLETE) == []
    assert when([*completing(), COMPLETED], record_finish()) == []


@pytest.mark.parametrize("phase", ["preparing", "queued", "dispatched", "running"])
def test_delivery_of_an_untrained_model_is_refused(phase: str) -> None:
    assert refused(PHASES[phase](), COMPLETE) == "invalid_job_state"


# ---- cancel and delete -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["preparing", "queued"])
def test_cancel_of_a_job_without_a_slot_ends_it(phase: str) -> None:
    assert when(PHASES[phase](), CANCEL) == [CANCELLED]


@pytest.mark.parametrize("phase", ["dispatched", "running"])
def test_cancel_of_a_job_with_a_slot_is_a_request_made_once(phase: str) -> None:
    past = PHASES[phase]()
    assert when(past, CANCEL) == [CANCEL_REQUESTED]
    assert when([*past, CANCEL_REQUESTED], CANCEL) == []


def test_a_cancelled_job_has_ended_when_its_attempt_is_gone() -> None:
    assert when([*running(), CANCEL_REQUESTED], RECORD_CANCELLED) == [CANCELLED]


def test_a_failure_after_a_cancel_request_cancels_the_job_and_is_not_tried_again() -> None:
    failed, ended = when([*running(), CANCEL_REQUESTED], record_failure("lost"))
    assert isinstance(failed, JobAttemptFailed)
    assert ended == CANCELLED


def test_a_success_that_races_a_cancel_is_kept_beside_the_cancelled_job() -> None:
    late = JobLateFact(fact="training finished", attempt_id=ATTEMPT, at=T0)
    assert when([*running(), CANCEL_REQUESTED], record_finish()) == [CANCELLED, late]
    assert when([*running(), CANCEL_REQUESTED, CANCELLED, late], record_finish()) == []


def test_a_start_or_checkpoint_after_a_cancel_request_does_not_undo_it() -> None:
    past = [*holding(), CANCEL_REQUESTED]
    past += when(past, RECORD_STARTED)
    past += when(past, record_checkpoint(50))
    assert [type(event) for event in past[-2:]] == [JobStarted, JobCheckpointed]
    assert when(past, RECORD_CANCELLED) == [CANCELLED]


def test_cancel_while_completing_is_refused() -> None:
    assert refused(completing(), CANCEL) == "invalid_job_state"


@pytest.mark.parametrize("phase", ["completed", "failed"])
def test_cancel_of_a_job_that_ended_otherwise_is_refused(phase: str) -> None:
    assert refused(PHASES[phase](), CANCEL) == "invalid_job_state"


def test_cancel_of_a_cancelled_job_is_harmless() -> None:
    assert when(PHASES["cancelled"](), CANCEL) == []


@pytest.mark.parametrize("phase", ENDED)
def test_a_job_that_has_ended_is_deleted_once(phase: str) -> None:
    past = PHASES[phase]()
    assert when(past, DELETE) == [JobDeleted(deleted_at=T0)]
    assert when([*past, JobDeleted(deleted_at=T0)], DELETE) == []


@pytest.mark.parametrize("phase", LIVE)
def test_delete_of_a_live_job_is_refused(phase: str) -> None:
    assert refused(PHASES[phase](), DELETE) == "invalid_job_state"


@pytest.mark.parametrize("command", [CANCEL, DELETE, RECORD_PACKED, RECORD_STARTED])
def test_a_job_that_was_never_submitted_is_not_found(command: JobCommand) -> None:
    assert refused([], command) == "job_not_found"


# ---- after the end ---------------------------------------------------------------------------------------------------

LATE: list[tuple[Fact, str]] = [
    (RECORD_PACKED, "datasets packed"),
    (RECORD_FUNDS, "funds reserved"),
    (refuse("dataset_refused"), "dataset_refused"),
    (RECORD_STARTED, "attempt started"),
    (record_checkpoint(50), "checkpoint 50 saved"),
    (record_failure("lost"), "attempt failed"),
    (RECORD_CANCELLED, "attempt cancelled"),
    (record_finish(), "training finished"),
]


@pytest.mark.parametrize(("fact", "words"), LATE)
def test_a_late_fact_is_recorded_once_beside_the_end(fact: Fact, words: str) -> None:
    past: list[Event] = [submitted(), CANCELLED]
    (late,) = when(past, fact)
    assert isinstance(late, JobLateFact)
    assert late.fact == words
    assert when([*past, late], fact) == []


@pytest.mark.parametrize("phase", ENDED)
def test_a_late_success_does_not_reopen_the_job(phase: str) -> None:
    past = PHASES[phase]()
    past += when(past, record_finish(OTHER_ATTEMPT))
    assert [type(event) for event in past[-1:]] == [JobLateFact]
    assert refused(past, CANCEL) == "invalid_job_state" if phase != "cancelled" else when(past, CANCEL) == []
    assert when(past, dispatch()) == []


def test_a_fact_that_was_recorded_while_the_job_lived_is_not_late_afterwards() -> None:
    past = [*running(), checkpointed(50), finished(), COMPLETED]
    for fact in (RECORD_PACKED, RECORD_FUNDS, RECORD_STARTED, record_checkpoint(50), record_finish()):
        assert when(past, fact) == []
