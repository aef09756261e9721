"""What the log says of each job's way through the queue: what came from outside, and what was decided.

From outside come arrivals, when a job was ready to queue, how long each attempt held its slot and how that ended, and
cancels. Moments are those at which the log recorded them: they never fall along the log.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from shared.contracts.attempt import AttemptCancelled, AttemptFailed, AttemptLost, AttemptSucceeded
from shared.contracts.job import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobQueued,
    JobSubmitted,
    JobTrainingFinished,
)

Ending = Literal["finished", "failed", "cancelled"]
Outcome = Literal["completed", "failed", "cancelled"]

AttemptEnd = AttemptSucceeded | AttemptFailed | AttemptCancelled | AttemptLost


class Mark(msgspec.Struct, frozen=True):
    """Where in the log, and when."""

    position: int
    at: datetime


class Visit(msgspec.Struct, kw_only=True):
    """Once through the queue: from being queued to the slot, and to the end of the attempt that had it."""

    queued: Mark
    queued_at: datetime
    """As the event says; the queue's order goes by it."""
    not_before: datetime | None = None
    dispatched: Mark | None = None
    released: Mark | None = None
    ending: Ending | None = None
    failure_kind: str = ""
    spared: bool = False
    billed_seconds: int | None = None
    idle: timedelta = timedelta(0)
    """The part of a simulated hold that is not billed."""


class Story(msgspec.Struct, kw_only=True):
    """One job. `cancel` is when its user first asked for its end."""

    job_id: UUID
    user_id: str
    provider: str
    priority: int
    max_attempts: int
    arrived: Mark
    price_micro_usd_per_hour: int = 0
    visits: list[Visit] = []
    cancel: Mark | None = None
    ended: Mark | None = None
    outcome: Outcome | None = None

    @property
    def attempts_made(self) -> int:
        """How many attempts were given a slot."""
        return sum(visit.dispatched is not None for visit in self.visits)

    @property
    def spared(self) -> int:
        """How many of them do not count."""
        return sum(visit.spared for visit in self.visits)

    @property
    def last(self) -> Visit | None:
        """The visit under way, or the last one."""
        return self.visits[-1] if self.visits else None

    @property
    def holds(self) -> bool:
        """Whether it holds a slot."""
        last = self.last
        return last is not None and last.dispatched is not None and last.released is None


class Histories:
    """Every job's story, folded from `job` and `attempt` events in log order."""

    def __init__(self) -> None:
        self.stories: dict[UUID, Story] = {}
        self._visits: dict[UUID, Visit] = {}

    def forget_ended(self) -> None:
        """Drops the jobs that have ended: what is asked begins here."""
        self.stories = {job_id: story for job_id, story in self.stories.items() if story.outcome is None}
        held = {id(visit) for story in self.stories.values() for visit in story.visits}
        self._visits = {attempt_id: visit for attempt_id, visit in self._visits.items() if id(visit) in held}

    def attempt_ended(self, attempt_id: UUID, event: AttemptEnd) -> None:
        """How many seconds an attempt is billed for."""
        visit = self._visits.get(attempt_id)
        if visit is not None:
            visit.billed_seconds = event.billed_seconds

    def take(self, job_id: UUID, event: Event, mark: Mark) -> None:
        """One more event of a job."""
        if isinstance(event, JobSubmitted):
            self.stories[job_id] = Story(
                job_id=job_id,
                user_id=event.user_id,
                provider=event.provider,
                priority=event.priority,
                max_attempts=event.max_attempts,
                arrived=mark,
            )
        elif (story := self.stories.get(job_id)) is not None:
            self._take_next(story, event, mark)

    def _take_next(self, story: Story, event: Event, mark: Mark) -> None:
        match event:
            case JobFundsReserved():
                story.price_micro_usd_per_hour = event.price_micro_usd_per_hour
            case JobQueued():
                visit = Visit(queued=mark, queued_at=event.queued_at, not_before=event.not_before)
                story.visits.append(visit)
            case JobDispatched() if story.last is not None:
                story.last.dispatched = mark
                self._visits[event.attempt_id] = story.last
            case JobCancelRequested():
                story.cancel = story.cancel or mark
            case _:
                _take_end(story, event, mark)


def _take_end(story: Story, event: Event, mark: Mark) -> None:
    """What frees a slot or ends the job."""
    match event:
        case JobAttemptFailed():
            release(story, "failed", mark, event.kind, spared=event.spared)
        case JobTrainingFinished():
            release(story, "finished", mark)
        case JobCompleted():
            end(story, "completed", mark)
        case JobFailed():
            end(story, "failed", mark)
        case JobCancelled():
            if not story.holds:  # asked of a job without a slot: it ends at once
                story.cancel = story.cancel or mark
            release(story, "cancelled", mark)
            end(story, "cancelled", mark)
        case _:
            return


def release(story: Story, ending: Ending, mark: Mark, failure_kind: str = "", *, spared: bool = False) -> None:
    """The slot is free again; nothing if the job holds none."""
    last = story.last
    if last is not None and last.dispatched is not None and last.released is None:
        last.released, last.ending, last.failure_kind, last.spared = mark, ending, failure_kind, spared


def end(story: Story, outcome: Outcome, mark: Mark) -> None:
    """The job is over."""
    story.ended, story.outcome = mark, outcome


def cut(story: Story, position: int) -> Story:
    """The story as far as it was told before a position: a copy that can go on in another way."""
    known = [visit for visit in story.visits if visit.queued.position < position]
    is_over = _before(story.ended, position)
    return msgspec.structs.replace(
        story,
        visits=[_cut_visit(visit, position) for visit in known],
        cancel=story.cancel if _before(story.cancel, position) else None,
        ended=story.ended if is_over else None,
        outcome=story.outcome if is_over else None,
    )


def _cut_visit(visit: Visit, position: int) -> Visit:
    if _before(visit.released, position):
        return msgspec.structs.replace(visit)
    dispatched = visit.dispatched if _before(visit.dispatched, position) else None
    return Visit(queued=visit.queued, queued_at=visit.queued_at, not_before=visit.not_before, dispatched=dispatched)


def _before(mark: Mark | None, position: int) -> bool:
    return mark is not None and mark.position < position


Stories = Mapping[UUID, Story]
