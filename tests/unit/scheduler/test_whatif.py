"""What-if on small pasts: what would have been otherwise, and what is named as the first difference."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from services.scheduler.domain.queue_policy import Limits
from services.scheduler.domain.whatif_story import Mark, Story
from services.scheduler.domain.whatif_tally import jain, outcome_word, stats
from shared.contracts.attempt import AttemptSucceeded
from shared.contracts.job import (
    DecisionBasis,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobQueued,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
)
from shared.contracts.whatif import Policy, PolicyLimits, PolicyRetry, WaitStats
from tests.support.bulk_log import PastEvent
from tests.support.month import Shape, a_month
from tests.support.whatif import asked
from tests.unit.scheduler.job_samples import T0

ONE_SLOT = Limits(in_all=1, per_user=1)
A, B = UUID(int=0xA), UUID(int=0xB)
HOUR_S = 3600


class Past:
    """A log that is written line by line: `add(job, seconds since T0, event...)`."""

    def __init__(self) -> None:
        self.events: list[PastEvent] = []

    def add(self, job_id: UUID, at_s: float, *events: Event, stream: str = "") -> None:
        at = T0 + timedelta(seconds=at_s)
        self.events += [
            PastEvent(stream=stream or f"job-{job_id}", event=event, correlation_id=job_id, recorded_at=at)
            for event in events
        ]

    def queued(self, job_id: UUID, at_s: float, user: str = "alice") -> None:
        at = T0 + timedelta(seconds=at_s)
        submitted = JobSubmitted(
            user_id=user,
            provider="local",
            priority=10,
            config={},
            dataloader=[],
            datasets=[],
            config_name=None,
            tracker_run_name=None,
            idempotency_key=None,
            account=user,
            submitted_at=at,
        )
        funded = JobFundsReserved(reserved_micro_usd=0, price_micro_usd_per_hour=3_600_000)
        self.add(job_id, at_s, submitted, funded, JobQueued(queued_at=at, reason="first_time"))

    def placed(
        self,
        job_id: UUID,
        at_s: float,
        attempt_id: UUID,
        number: int = 1,
        seen: int | None = None,
        slot: int = 1,
        of: int = 1,
    ) -> None:
        event = JobDispatched(
            attempt_id=attempt_id,
            attempt_number=number,
            provider="local",
            resume=None,
            reason=f"first in line at priority 10; slot {slot} of {of}, {slot} of {of} of its user",
            dispatched_at=T0 + timedelta(seconds=at_s),
            basis=self._basis(at_s, seen, of),
        )
        self.add(job_id, at_s, event)

    def waits(self, job_id: UUID, at_s: float, holder: UUID) -> None:
        event = JobWaitExplained(
            reason="user_limit",
            detail="1 of 1 slots of this user are taken",
            limit=1,
            holders=[str(holder)],
            basis=self._basis(at_s),
        )
        self.add(job_id, at_s, event)

    def finished(self, job_id: UUID, at_s: float, attempt_id: UUID, seconds: int) -> None:
        at = T0 + timedelta(seconds=at_s)
        succeeded = AttemptSucceeded(
            steps=1, final_loss=None, artifacts=[], undelivered=[], ended_at=at, billed_seconds=seconds
        )
        trained = JobTrainingFinished(
            attempt_id=attempt_id, steps=1, final_loss=None, artifacts=[], undelivered=[], finished_at=at
        )
        self.add(job_id, at_s, succeeded, stream=f"attempt-{attempt_id}")
        self.add(job_id, at_s, trained)

    def failed(self, job_id: UUID, at_s: float, attempt_id: UUID, *following: Event, kind: str = "lost") -> None:
        failure = JobAttemptFailed(
            attempt_id=attempt_id, kind=kind, message="gone", advice=None, failed_at=T0 + timedelta(seconds=at_s)
        )
        self.add(job_id, at_s, failure, *following)

    def _basis(self, at_s: float, seen: int | None = None, of: int = 1) -> DecisionBasis:
        return DecisionBasis(
            seen_position=len(self.events) if seen is None else seen,
            decided_at=T0 + timedelta(seconds=at_s),
            slots_in_all=of,
            slots_per_user=of,
        )


def two_in_a_row() -> Past:
    """A runs for an hour in the one slot, then B for another."""
    past, first, second = Past(), uuid4(), uuid4()
    past.queued(A, 0)
    past.placed(A, 1, first)
    past.queued(B, 10)
    past.waits(B, 11, A)
    past.finished(A, 1 + HOUR_S, first, HOUR_S - 60)
    past.placed(B, 2 + HOUR_S, second)
    past.finished(B, 2 + 2 * HOUR_S, second, HOUR_S - 60)
    return past


def visits(story: Story) -> list[tuple[float | None, float | None]]:
    """(dispatched, released) of each visit in seconds since T0."""
    return [(_seconds(visit.dispatched), _seconds(visit.released)) for visit in story.visits]


def _seconds(mark: Mark | None) -> float | None:
    return mark and (mark.at - T0).total_seconds()


def test_history_is_reproduced_and_nothing_would_have_been_otherwise() -> None:
    told = asked(two_in_a_row().events, limits=ONE_SLOT).report({}, {}, 0.0)
    assert (told.decisions.recorded, told.decisions.reproduced, told.decisions.without_basis) == (3, 3, 0)
    assert told.what_if == told.happened
    assert told.happened.wait == WaitStats(jobs=2, mean_s=1796.5, median_s=1, p95_s=3592, max_s=3592)


def test_with_a_second_slot_the_second_job_runs_at_once_for_as_long_as_it_did() -> None:
    policy = Policy(limits=PolicyLimits(in_all=2, per_user=2))
    what_if = asked(two_in_a_row().events, policy, limits=ONE_SLOT)
    told = what_if.report({}, {}, 0.0)
    assert told.decisions.reproduced == 1
    difference = told.decisions.first_difference
    assert difference is not None
    assert (difference.position, difference.job_id) == (8, B)
    assert "user_limit" in difference.recorded
    assert "attempt 1" in difference.decided
    assert visits(what_if.other_stories[B]) == [(11, 11 + HOUR_S)]
    assert (told.what_if.wait.max_s, told.what_if.completed, told.assumed_attempts) == (1, 2, 0)
    assert {usage.seconds for usage in what_if.usages(what_if=True)} == {HOUR_S - 60}


def test_decisions_under_limits_that_were_changed_are_reproduced() -> None:
    """The scheduler was started anew with two slots: each round is held to the limits it says."""
    past = Past()
    past.queued(A, 0)
    past.placed(A, 1, uuid4())
    past.queued(B, 10)
    past.waits(B, 11, A)
    past.placed(B, 12, uuid4(), slot=2, of=2)
    decisions = asked(past.events, limits=ONE_SLOT).report({}, {}, 0.0).decisions
    assert (decisions.recorded, decisions.reproduced, decisions.first_difference) == (3, 3, None)


def test_a_decision_out_of_order_is_named() -> None:
    """Two jobs wait, and the later one was given the slot: somebody else decided that."""
    past, attempt = Past(), uuid4()
    past.queued(A, 0)
    past.queued(B, 1)
    past.placed(B, 2, attempt)
    difference = asked(past.events, limits=ONE_SLOT).report({}, {}, 0.0).decisions.first_difference
    assert difference is not None
    assert (difference.position, difference.job_id) == (7, B)
    assert str(B) in difference.recorded
    assert str(A) in difference.decided


def test_a_round_that_wrote_less_than_the_policy_says_is_named() -> None:
    past = Past()
    past.queued(A, 0)
    past.queued(B, 0)
    past.placed(A, 1, uuid4())  # B's wait was not explained
    past.waits(B, 2, A)
    difference = asked(past.events, limits=ONE_SLOT).report({}, {}, 0.0).decisions.first_difference
    assert difference is not None
    assert difference.recorded == "nothing further in this round"
    assert str(B) in difference.decided


def test_what_moved_while_a_round_decided_is_not_missed_in_it() -> None:
    """B is cancelled after the round saw it and before it wrote: no explanation could be written, and none is asked."""
    past = Past()
    past.queued(A, 0)
    past.queued(B, 0)
    seen = len(past.events)
    past.add(B, 1, JobCancelled(cancelled_at=T0, reason="asked"))
    past.placed(A, 2, uuid4(), seen=seen)
    decisions = asked(past.events, limits=ONE_SLOT).report({}, {}, 0.0).decisions
    assert (decisions.recorded, decisions.reproduced, decisions.first_difference) == (1, 1, None)


@pytest.mark.parametrize(("max_attempts", "outcome", "attempts"), [(1, "failed", 1), (3, "completing", 2)])
def test_another_number_of_attempts_ends_the_job_elsewhere(max_attempts: int, outcome: str, attempts: int) -> None:
    past, first, second = Past(), uuid4(), uuid4()
    past.queued(A, 0)
    past.placed(A, 1, first)
    at = T0 + timedelta(seconds=100)
    delay = timedelta(seconds=10)
    again = JobQueued(queued_at=at, not_before=at + delay, reason="retry after lost: attempt 2 of 3 in 10 s")
    past.failed(A, 100, first, again)
    past.placed(A, 110, second, number=2)
    past.finished(A, 200, second, 80)
    policy = Policy(retry=PolicyRetry(max_attempts=max_attempts))
    what_if = asked(past.events, policy, limits=ONE_SLOT)
    story = what_if.other_stories[A]
    assert (outcome_word(story), story.attempts_made) == (outcome, attempts)
    assert (what_if.report({}, {}, 0.0).decisions.first_difference is None) == (max_attempts == 3)


def test_an_attempt_that_never_was_goes_as_the_last_one_did_and_is_counted() -> None:
    past, attempt = Past(), uuid4()
    past.queued(A, 0)
    past.placed(A, 1, attempt)
    end = JobFailed(
        failed_at=T0, kind="lost", message="gone (not tried again: attempt 1 of 1 was the last)", advice=None
    )
    past.failed(A, 101, attempt, end)
    past.queued(B, 2000, user="bob")
    past.placed(B, 2001, uuid4())
    what_if = asked(past.events, Policy(retry=PolicyRetry(max_attempts=2)), limits=ONE_SLOT)
    story = what_if.other_stories[A]
    assert visits(story) == [(1, 101), (111, 211)]
    assert (story.outcome, what_if.report({}, {}, 0.0).assumed_attempts) == ("failed", 1)


def test_a_cancel_stays_where_it_was_in_time() -> None:
    """B was cancelled while it waited; with a second slot it runs, until the same moment."""
    past, attempt = Past(), uuid4()
    past.queued(A, 0)
    past.placed(A, 1, attempt)
    past.queued(B, 10)
    past.waits(B, 11, A)
    past.add(B, 500, JobCancelled(cancelled_at=T0, reason="asked"))
    past.finished(A, 1000, attempt, 900)
    what_if = asked(past.events, Policy(limits=PolicyLimits(in_all=2, per_user=2)), limits=ONE_SLOT)
    story = what_if.other_stories[B]
    assert (story.outcome, visits(story)) == ("cancelled", [(11, 500)])


def test_a_cancel_that_would_have_come_too_late_is_counted() -> None:
    past, first, second = Past(), uuid4(), uuid4()
    past.queued(A, 0)
    past.placed(A, 1, first)
    past.queued(B, 10)
    past.waits(B, 11, A)
    past.finished(A, 300, first, 250)
    past.placed(B, 301, second)
    at = T0 + timedelta(seconds=400)
    reason = "retry after lost: attempt 2 of 3 in 10 s"
    past.failed(B, 400, second, JobQueued(queued_at=at, not_before=at + timedelta(seconds=10), reason=reason))
    past.add(B, 405, JobCancelled(cancelled_at=T0, reason="asked"))
    what_if = asked(past.events, Policy(limits=PolicyLimits(in_all=2, per_user=2)), limits=ONE_SLOT)
    story = what_if.other_stories[B]
    assert visits(story) == [(11, 110), (120, 219), (239, 338)]
    assert (story.outcome, what_if.report({}, {}, 0.0).late_cancels) == ("failed", 1)


def test_on_its_own_from_the_start_it_ends_where_history_did() -> None:
    """The course of events is the model; with nothing but arrivals it comes within a hundredth of what happened."""
    shape = Shape(jobs=300, days=0.9)
    told = asked(a_month(7, shape), limits=shape.limits, is_free=True).report({}, {}, 0.0)
    happened, would = told.happened, told.what_if
    assert (would.completed, would.failed, would.cancelled) == (happened.completed, happened.failed, happened.cancelled)
    assert would.wait.mean_s == pytest.approx(happened.wait.mean_s, rel=0.01)
    assert would.slot_seconds == pytest.approx(happened.slot_seconds, rel=0.01)


def test_statistics_are_those_of_the_textbook() -> None:
    assert stats([4, 1, 3, 2]) == WaitStats(jobs=4, mean_s=2.5, median_s=2, p95_s=4, max_s=4)
    assert stats([]).jobs == 0
    assert (jain([1, 1, 1, 1]), jain([1, 0, 0, 0]), jain([])) == (1.0, 0.25, 1.0)
