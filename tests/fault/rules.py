"""What must hold of any history, as pure functions over it: each gives its violations in words, none when it holds.

They are written from the promises, not from the services: only the stored events are shared with them.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from shared.contracts import catalogue
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptFailed,
    AttemptLateReport,
    AttemptLost,
    AttemptStartIntended,
    AttemptSucceeded,
)
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import (
    Event,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobDispatched,
    JobFailed,
    JobLateFact,
    JobQueued,
    JobSubmitted,
    JobTrainingFinished,
)
from shared.contracts.subjects import Durable

JOB_ENDS = (JobCompleted, JobFailed, JobCancelled)
ATTEMPT_ENDS = (AttemptSucceeded, AttemptFailed, AttemptCancelled, AttemptLost)
CLOCK_SLACK = timedelta(milliseconds=50)
"""Two clocks of one machine, read by two programs."""


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One event, decoded, and where it stands. `owner_id` is the id in its stream's name."""

    position: int
    stream: str
    category: str
    owner_id: UUID
    job_id: UUID
    at: datetime
    event: Event


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that was started for an attempt, and whether it lives now."""

    attempt_id: UUID
    started_at: datetime
    alive: bool


def facts_of(history: Iterable[RecordedEvent]) -> list[Fact]:
    """The events of a history whose types we know, in its order."""
    decoded = ((recorded, catalogue.decode(recorded)) for recorded in history)
    return [
        Fact(
            position=recorded.global_position,
            stream=recorded.stream,
            category=recorded.category,
            owner_id=UUID(recorded.stream.partition("-")[2]),
            job_id=recorded.correlation_id,
            at=recorded.recorded_at,
            event=event,
        )
        for recorded, event in decoded
        if event is not None
    ]


def gapless(history: Sequence[RecordedEvent], since: int = 0) -> list[str]:
    """Positions go on from `since` without gap or repeat, and so do the versions of each stream."""
    found = [
        f"position {since + place} is missing or repeated: {recorded.global_position} stands in its place"
        for place, recorded in enumerate(history, start=1)
        if recorded.global_position != since + place
    ][:1]
    versions: dict[str, int] = {}
    for recorded in history:
        before = versions.get(recorded.stream, 0 if since == 0 else recorded.stream_version - 1)
        if recorded.stream_version != before + 1:
            found.append(f"{recorded.stream} goes from version {before} to {recorded.stream_version}")
        versions[recorded.stream] = recorded.stream_version
    ids = Counter(recorded.event_id for recorded in history)
    return found + [f"event {event_id} stands in the log {count} times" for event_id, count in ids.items() if count > 1]


def one_end(facts: Sequence[Fact], must_end: Collection[UUID] = ()) -> list[str]:
    """A job or attempt ends at most once, and nothing but late facts follows; those of `must_end` have ended."""
    found: list[str] = []
    ended: dict[str, Fact] = {}
    late = (JobLateFact, JobDeleted, AttemptLateReport)
    for fact in facts:
        if fact.category not in ("job", "attempt"):
            continue
        end = ended.get(fact.stream)
        if end is not None and not isinstance(fact.event, late):
            found.append(f"{fact.stream} ended with {_name(end)} and then has {_name(fact)}")
        if end is None and isinstance(fact.event, (*JOB_ENDS, *ATTEMPT_ENDS)):
            ended[fact.stream] = fact
    return found + [f"job-{job_id} has not ended" for job_id in must_end if f"job-{job_id}" not in ended]


def cancelled_starts_nothing(facts: Sequence[Fact]) -> list[str]:
    """After a job's cancel it gets no attempt and no machine; nor does an attempt after its own."""
    found: list[str] = []
    jobs: dict[UUID, Fact] = {}
    attempts: dict[UUID, Fact] = {}
    for fact in facts:
        match fact.event:
            case JobCancelRequested() | JobCancelled():
                jobs.setdefault(fact.job_id, fact)
            case AttemptCancelRequested() | AttemptCancelled():
                attempts.setdefault(fact.owner_id, fact)
            case JobDispatched() if fact.job_id in jobs:
                found.append(f"{fact.stream} was dispatched at {fact.position}, after {_name(jobs[fact.job_id])}")
            case AttemptStartIntended():
                cancel = attempts.get(fact.owner_id) or jobs.get(fact.job_id)
                if cancel is not None:
                    found.append(f"{fact.stream} was to be started at {fact.position}, after {_name(cancel)}")
            case _:
                continue
    return found


def one_live_attempt(facts: Sequence[Fact]) -> list[str]:
    """A start is intended only for an attempt that its job was dispatched to, and not while another one lives."""
    found: list[str] = []
    dispatched: dict[UUID, UUID] = {}
    live: defaultdict[UUID, set[UUID]] = defaultdict(set)
    for fact in facts:
        match fact.event:
            case JobDispatched():
                dispatched[fact.event.attempt_id] = fact.job_id
            case AttemptStartIntended():
                if dispatched.get(fact.owner_id) != fact.job_id:
                    found.append(f"{fact.stream} was to be started and job-{fact.job_id} was never dispatched to it")
                others = live[fact.job_id] - {fact.owner_id}
                found += [f"{fact.stream} was to be started while attempt-{other} lived" for other in others]
                live[fact.job_id].add(fact.owner_id)
            case event if isinstance(event, ATTEMPT_ENDS):
                live[fact.job_id].discard(fact.owner_id)
            case _:
                continue
    return found


def slots_kept(facts: Sequence[Fact], *, in_all: int, per_user: int) -> list[str]:
    """No moment of the log has more jobs that hold a slot than the limits allow, in all or of one user."""
    found: list[str] = []
    users: dict[UUID, str] = {}
    holders: dict[UUID, str] = {}
    for fact in facts:
        match fact.event:
            case JobSubmitted():
                users[fact.job_id] = fact.event.user_id
            case JobDispatched():
                holders[fact.job_id] = users.get(fact.job_id, "unknown")
                if len(holders) > in_all:
                    found.append(f"{len(holders)} jobs hold {in_all} slots at position {fact.position}")
                of_user = sum(user == holders[fact.job_id] for user in holders.values())
                if of_user > per_user:
                    mine = f"{of_user} jobs of {holders[fact.job_id]} hold {per_user} slots"
                    found.append(f"{mine} at position {fact.position}")
            case JobQueued() | JobTrainingFinished() | JobCompleted() | JobFailed() | JobCancelled():
                holders.pop(fact.job_id, None)
            case _:
                continue
    return found


def one_job_per_key(facts: Sequence[Fact]) -> list[str]:
    """A user's idempotency key stands for one job."""
    jobs: defaultdict[tuple[str, str], list[UUID]] = defaultdict(list)
    for fact in facts:
        if isinstance(fact.event, JobSubmitted) and fact.event.idempotency_key is not None:
            jobs[(fact.event.user_id, fact.event.idempotency_key)].append(fact.job_id)
    return [
        f"key {key!r} of {user} stands for {len(ids)} jobs: {', '.join(map(str, ids))}"
        for (user, key), ids in jobs.items()
        if len(ids) > 1
    ]


def runs_owned(facts: Sequence[Fact], runs: Sequence[Run]) -> list[str]:
    """A machine was intended before it was started, an attempt has one at most, none outlives a confirmed end."""
    intents: dict[UUID, datetime] = {}
    gone: set[UUID] = set()
    for fact in facts:
        if isinstance(fact.event, AttemptStartIntended):
            intents.setdefault(fact.owner_id, fact.at)
        elif isinstance(fact.event, AttemptCancelled | AttemptLost):
            gone.add(fact.owner_id)
    found = [
        f"attempt-{run.attempt_id} has a machine that nobody intended"
        for run in runs
        if run.attempt_id not in intents or intents[run.attempt_id] > run.started_at + CLOCK_SLACK
    ]
    counts = Counter(run.attempt_id for run in runs)
    found += [f"attempt-{attempt_id} was started {n} times" for attempt_id, n in counts.items() if n > 1]
    return found + [
        f"attempt-{run.attempt_id} was confirmed gone and lives" for run in runs if run.alive and run.attempt_id in gone
    ]


def handled_once(
    durable: Durable, history: Iterable[RecordedEvent], inbox: Mapping[UUID, int], checkpoint: int
) -> list[str]:
    """A durable has handled each event of its categories up to its checkpoint, and no other; it is not behind.

    `inbox` is event id -> position as the durable remembers it, for the positions that `history` covers.
    """
    expected = {one.event_id: one.global_position for one in history if one.category in durable.categories}
    skipped = sorted(place for event_id, place in expected.items() if event_id not in inbox and place <= checkpoint)
    foreign = sorted(place for event_id, place in inbox.items() if expected.get(event_id) != place)
    head = max(expected.values(), default=0)
    found = [f"{durable.name} skipped position {place}" for place in skipped]
    found += [f"{durable.name} handled what is not in the log at position {place}" for place in foreign]
    return found + ([f"{durable.name} is at {checkpoint}, the log at {head}"] if checkpoint < head else [])


def _name(fact: Fact) -> str:
    return f"{catalogue.event_type(type(fact.event))} at {fact.position}"
