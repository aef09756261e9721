"""Which facts of attempts and jobs move money."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.billing.domain.metering_process import AttemptEvents, due_usage, ends_attempt, ends_job
from shared.contracts.account import MeterUsage
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptFailed,
    AttemptLateReport,
    AttemptLost,
    AttemptRequested,
    AttemptStarted,
    AttemptSucceeded,
    Quote,
)
from shared.contracts.job import Event, JobCancelled, JobCompleted, JobFailed, JobTrainingFinished

T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOB, ATTEMPT = UUID(int=1), UUID(int=2)
REQUESTED = AttemptRequested(
    job_id=JOB,
    attempt_number=1,
    provider="local",
    quote=Quote(hardware="cpu", price_micro_usd_per_hour=42),
    config={},
    dataloader=[],
    datasets=[],
    resume=None,
    requested_at=T0,
)
STARTED = AttemptStarted(started_at=T0, device="cpu")
SUCCEEDED = AttemptSucceeded(steps=1, final_loss=None, artifacts=[], undelivered=[], ended_at=T0, billed_seconds=5)
ENDS: list[Event] = [
    SUCCEEDED,
    AttemptFailed(kind="lost", message="", advice=None, exit_code=None, ended_at=T0, billed_seconds=5),
    AttemptCancelled(ended_at=T0, billed_seconds=5),
    AttemptLost(message="", ended_at=T0, billed_seconds=5),
]


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_an_attempt_is_metered_at_the_price_quoted_for_it(end: Event) -> None:
    assert ends_attempt(end)
    events = [REQUESTED, STARTED, end, AttemptLateReport(report_type="done", at=T0)]
    (usage,) = due_usage([AttemptEvents(attempt_id=ATTEMPT, events=events)])
    assert usage == MeterUsage(job_id=JOB, attempt_id=ATTEMPT, seconds=5, price_micro_usd_per_hour=42)


def test_an_attempt_that_still_runs_owes_nothing_yet() -> None:
    assert not ends_attempt(STARTED)
    assert due_usage([AttemptEvents(attempt_id=ATTEMPT, events=[REQUESTED, STARTED])]) == []


def test_an_attempt_that_was_cancelled_before_it_was_requested_owes_nothing() -> None:
    forestalled = [AttemptCancelRequested(requested_at=T0, reason=""), AttemptCancelled(ended_at=T0, billed_seconds=0)]
    assert due_usage([AttemptEvents(attempt_id=ATTEMPT, events=forestalled)]) == []


def test_each_attempt_is_metered_for_itself() -> None:
    attempts = [AttemptEvents(attempt_id=UUID(int=n), events=[REQUESTED, SUCCEEDED]) for n in (2, 3)]
    assert [usage.attempt_id for usage in due_usage(attempts)] == [UUID(int=2), UUID(int=3)]


@pytest.mark.parametrize(
    "end",
    [
        JobCompleted(completed_at=T0, delivery="delivered", missing=[]),
        JobFailed(failed_at=T0, kind="", message="", advice=None),
        JobCancelled(cancelled_at=T0, reason=""),
    ],
)
def test_every_end_of_a_job_is_settled(end: Event) -> None:
    assert ends_job(end)


def test_finished_training_is_not_the_end_of_a_job() -> None:
    finished = JobTrainingFinished(
        attempt_id=ATTEMPT, steps=1, final_loss=None, artifacts=[], undelivered=[], finished_at=T0
    )
    assert not ends_job(finished)
