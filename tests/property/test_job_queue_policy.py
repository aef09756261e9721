"""The queue policy for any queue, any slots taken, and any limits."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.domain.queue_policy import Limits, RunningJob, WaitingJob, admit, queue_order

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
USERS = st.sampled_from(["alice", "bob", "carol"])
LIMITS = st.builds(Limits, in_all=st.integers(1, 6), per_user=st.integers(1, 4))


@st.composite
def queues(draw: st.DrawFn) -> tuple[list[WaitingJob], list[RunningJob]]:
    """Any number of waiting jobs with distinct ids and positions, and any slots taken (even above the limits)."""
    moments = st.integers(-5, 5).map(lambda seconds: NOW + timedelta(seconds=seconds))
    delays = st.none() | moments
    waiting = [
        WaitingJob(
            job_id=UUID(int=number),
            user_id=draw(USERS),
            priority=draw(st.sampled_from([0, 10, 40])),
            queued_at=draw(moments),
            position=number,
            not_before=draw(delays),
        )
        for number in range(1, draw(st.integers(0, 12)) + 1)
    ]
    running = [
        RunningJob(job_id=UUID(int=100 + number), user_id=draw(USERS)) for number in range(draw(st.integers(0, 6)))
    ]
    return draw(st.permutations(waiting)), running


@given(queues(), LIMITS)
def test_slots_given_out_never_exceed_a_limit(queue: tuple[list[WaitingJob], list[RunningJob]], limits: Limits) -> None:
    waiting, running = queue
    placed = [placement.job for placement in admit(waiting, running, limits, NOW).dispatches]
    assert len(placed) <= max(0, limits.in_all - len(running))
    for user in {job.user_id for job in placed}:
        held = sum(job.user_id == user for job in running)
        assert held + sum(job.user_id == user for job in placed) <= limits.per_user


@given(queues(), LIMITS)
def test_every_waiting_job_is_placed_or_told_why_not(
    queue: tuple[list[WaitingJob], list[RunningJob]], limits: Limits
) -> None:
    waiting, running = queue
    admission = admit(waiting, running, limits, NOW)
    answered = [placement.job for placement in admission.dispatches] + [wait.job for wait in admission.waits]
    assert sorted(answered, key=queue_order) == sorted(waiting, key=queue_order)


@given(queues(), LIMITS)
def test_no_slot_stays_free_while_a_job_that_may_take_it_waits(
    queue: tuple[list[WaitingJob], list[RunningJob]], limits: Limits
) -> None:
    waiting, running = queue
    admission = admit(waiting, running, limits, NOW)
    holders = [job.user_id for job in running] + [placement.job.user_id for placement in admission.dispatches]
    for wait in admission.waits:
        delayed = wait.job.not_before is not None and wait.job.not_before > NOW
        assert delayed or len(holders) >= limits.in_all or holders.count(wait.job.user_id) >= limits.per_user
        assert (wait.reason == "retry_delay") == delayed


@given(queues(), LIMITS)
def test_a_job_is_only_passed_over_for_a_reason_of_its_own(
    queue: tuple[list[WaitingJob], list[RunningJob]], limits: Limits
) -> None:
    """FIFO within a priority: whoever runs although another of the same user was ahead, that other was delayed."""
    waiting, running = queue
    admission = admit(waiting, running, limits, NOW)
    for wait in admission.waits:
        if wait.reason == "retry_delay":
            continue
        behind = [
            placement.job for placement in admission.dispatches if queue_order(placement.job) > queue_order(wait.job)
        ]
        assert wait.reason == "user_limit" or not behind
        assert all(job.user_id != wait.job.user_id for job in behind)


@given(queues(), LIMITS)
def test_the_order_in_which_jobs_are_listed_does_not_matter(
    queue: tuple[list[WaitingJob], list[RunningJob]], limits: Limits
) -> None:
    waiting, running = queue
    assert admit(waiting, running, limits, NOW) == admit(waiting[::-1], running[::-1], limits, NOW)
