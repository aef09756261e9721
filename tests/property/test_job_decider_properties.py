"""The job decider under any sequence of commands."""

from collections.abc import Sequence
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.domain.job import decide
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
from services.scheduler.domain.job_state import Absent, Ended, Job, evolve
from shared.contracts.job import (
    Event,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobDispatched,
    JobFailed,
    JobLateFact,
)
from shared.problems import Rejected
from tests.unit.scheduler.job_samples import (
    ATTEMPT,
    OTHER_ATTEMPT,
    T0,
    a_submit,
    an_order,
    record_checkpoint,
    record_failure,
    record_finish,
)

ENDS = (JobCompleted, JobFailed, JobCancelled)
ATTEMPTS = st.sampled_from([ATTEMPT, OTHER_ATTEMPT])
KINDS = st.sampled_from(["preempted", "lost", "bad_config"])
LATE_ENOUGH = T0 + timedelta(hours=1)

FACTS: st.SearchStrategy[Fact] = st.one_of(
    st.just(RecordDatasetsPacked(datasets=[], at=T0)),
    st.just(RecordFundsReserved(reserved_micro_usd=1, price_micro_usd_per_hour=1, at=T0)),
    st.just(RecordPreparationRefused(kind="funds_refused", message="", advice=None, at=T0)),
    ATTEMPTS.map(lambda attempt: RecordAttemptStarted(attempt_id=attempt, at=T0)),
    ATTEMPTS.map(lambda attempt: RecordAttemptCancelled(attempt_id=attempt, at=T0)),
    ATTEMPTS.map(record_finish),
    st.builds(record_checkpoint, st.sampled_from([25, 50]), ATTEMPTS),
    st.builds(record_failure, KINDS, ATTEMPTS),
)
OTHERS: st.SearchStrategy[JobCommand] = st.one_of(
    ATTEMPTS.map(lambda attempt: Dispatch(attempt_id=attempt, reason="r", at=LATE_ENOUGH)),
    st.just(ExplainWait(reason="user_limit", detail="", limit=2, holders=())),
    st.just(CompleteDelivery(missing=(), at=T0)),
    st.just(Cancel(reason="r", at=T0)),
    st.just(Delete(at=T0)),
    st.booleans().map(lambda datasets: a_submit(an_order(datasets=datasets))),
)
# A road that leads on makes deep states as likely as shallow ones; noise comes in between.
ROAD: list[JobCommand] = [
    a_submit(),
    RecordDatasetsPacked(datasets=[], at=T0),
    RecordFundsReserved(reserved_micro_usd=1, price_micro_usd_per_hour=1, at=T0),
    Dispatch(attempt_id=ATTEMPT, reason="r", at=LATE_ENOUGH),
    RecordAttemptStarted(attempt_id=ATTEMPT, at=T0),
    record_checkpoint(25),
    record_finish(),
    CompleteDelivery(missing=(), at=T0),
]


@st.composite
def stories(draw: st.DrawFn) -> list[JobCommand]:
    """A stretch of the usual road with anything in between."""
    commands: list[JobCommand] = []
    for step in ROAD[: draw(st.integers(1, len(ROAD)))]:
        commands.append(step)
        commands += draw(st.lists(st.one_of(FACTS, OTHERS), max_size=3))
    return commands


def attempt(state: Job, command: JobCommand) -> Sequence[Event]:
    try:
        return decide(state, command)
    except Rejected:
        return []


def folded(events: Sequence[Event], state: Job = Absent()) -> Job:  # noqa: B008 - frozen
    for event in events:
        state = evolve(state, event)
    return state


def lived(commands: Sequence[JobCommand]) -> list[Event]:
    events: list[Event] = []
    for command in commands:
        events += attempt(folded(events), command)
    return events


@given(stories())
def test_any_command_sequence_folds_without_error(commands: list[JobCommand]) -> None:
    assert not isinstance(folded(lived(commands)), Absent)


@given(stories())
def test_an_ended_job_stays_ended_in_the_way_it_ended(commands: list[JobCommand]) -> None:
    events = lived(commands)
    ends = [place for place, event in enumerate(events) if isinstance(event, ENDS)]
    assert len(ends) <= 1
    if ends:
        assert all(isinstance(event, JobLateFact | JobDeleted) for event in events[ends[0] + 1 :])
        assert isinstance(folded(events), Ended)


@given(stories())
def test_a_recorded_fact_told_again_at_any_later_time_records_nothing(commands: list[JobCommand]) -> None:
    state: Job = Absent()
    recorded: list[JobCommand] = []
    for command in commands:
        events = attempt(state, command)
        state = folded(events, state)
        recorded += [command] if events and isinstance(command, Fact) else []
        assert [again for again in recorded if attempt(state, again)] == []


@given(stories())
def test_a_late_fact_is_written_once(commands: list[JobCommand]) -> None:
    late = [(event.fact, event.attempt_id) for event in lived(commands) if isinstance(event, JobLateFact)]
    assert len(late) == len(set(late))


@given(stories())
def test_nothing_is_dispatched_after_a_cancel_request(commands: list[JobCommand]) -> None:
    events = lived(commands)
    cancelled = [place for place, event in enumerate(events) if isinstance(event, JobCancelRequested | JobCancelled)]
    if cancelled:
        assert not any(isinstance(event, JobDispatched) for event in events[cancelled[0] :])


@given(stories())
def test_no_more_attempts_are_made_than_allowed(commands: list[JobCommand]) -> None:
    numbers = [event.attempt_number for event in lived(commands) if isinstance(event, JobDispatched)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= 3


@given(stories(), st.lists(st.integers(0, 30), max_size=6))
def test_every_command_twice_gives_the_same_history_as_once(commands: list[JobCommand], doubled: list[int]) -> None:
    """Each command is told twice in a row at some places: the history is the same."""
    twice = [again for place, command in enumerate(commands) for again in [command] * (1 + (place in doubled))]
    assert lived(twice) == lived(commands)
