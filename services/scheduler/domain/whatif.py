"""What-if as a whole: feed it the log, let it run, ask what came of it. Pure; the service reads and asks for prices."""

from collections.abc import Iterator, Mapping
from uuid import UUID

import msgspec

from services.scheduler.domain.queue_policy import Limits
from services.scheduler.domain.whatif_policy import rules_of
from services.scheduler.domain.whatif_replay import LONG_AGO, Known, Replay
from services.scheduler.domain.whatif_run import Course
from services.scheduler.domain.whatif_story import AttemptEnd, Histories, Mark, Stories, Story
from services.scheduler.domain.whatif_tally import outcome_word, tally, usages, wait_s
from shared.contracts.attempt import AttemptCancelled, AttemptFailed, AttemptLost, AttemptSucceeded
from shared.contracts.job import Event
from shared.contracts.whatif import JobTold, SimulatePolicy, Usage, WhatIfReport

ATTEMPT_ENDS = (AttemptSucceeded, AttemptFailed, AttemptCancelled, AttemptLost)


class WhatIf:
    """One question. `take` every event of `job` and `attempt` streams in log order, then `finish`, then `told`."""

    def __init__(self, asked: SimulatePolicy, in_force: Limits, *, is_free: bool = False) -> None:
        self._asked = asked
        self._rules = rules_of(asked.policy)
        self._histories = Histories()
        self._replay = Replay(self._rules, in_force)
        self._course: Course | None = None
        self._is_free = is_free
        self._began: Mark | None = None
        self._last = Mark(0, LONG_AGO)
        self._events = 0

    @property
    def stories(self) -> Stories:
        """What happened."""
        return self._histories.stories

    @property
    def other_stories(self) -> Stories:
        """What would have; the same stories when nothing differs."""
        return self._course.stories if self._course else self._histories.stories

    def take(self, category: str, stream_id: UUID, event: Event, mark: Mark) -> None:
        """The next event of the log."""
        if self._began is None and mark.position > self._asked.after_position:
            self._began = mark
            self._histories.forget_ended()
        self._last = mark
        self._events += 1
        if category == "attempt":
            if isinstance(event, AttemptEnd):
                self._histories.attempt_ended(stream_id, event)
            return
        known = Known(stream_id, event, mark)
        if self._began is None:
            self._replay.skip(known)
        else:
            self._replay.take(known, self.stories.get(stream_id))
        self._histories.take(stream_id, event, mark)

    def finish(self) -> Iterator[None]:
        """There are no more events: carries on from the first difference, a piece at a time."""
        self._replay.finish()
        begins = self._began if self._is_free else self._replay.differs_at
        if begins is not None:
            self._course = Course(self.stories, self._rules, self._replay.in_force, begins=begins, until=self._last)
            yield from self._course.run()

    def usages(self, *, what_if: bool) -> list[Usage]:
        """What is to be priced. Under another price list only what would have happened is."""
        told = self._counted(self.other_stories if what_if else self.stories)
        return usages(told, at_recorded_price=not (what_if and self._asked.prices))

    def report(self, costs: Mapping[str, int], other_costs: Mapping[str, int], duration_s: float) -> WhatIfReport:
        """Both sides; costs are micro-dollars by user."""
        happened, would = self._counted(self.stories), self._counted(self.other_stories)
        until, in_force = self._last.at, self._replay.in_force
        return WhatIfReport(
            after_position=self._asked.after_position,
            up_to_position=self._last.position,
            began_at=self._began.at if self._began else None,
            ended_at=until if self._events else None,
            policy=msgspec.to_builtins(self._asked.policy),
            limits_in_force={"in_all": in_force.in_all, "per_user": in_force.per_user},
            events=self._events,
            carried_over=len(self.stories) - len(happened),
            duration_s=duration_s,
            decisions=self._replay.decisions,
            happened=tally(happened, until, costs),
            what_if=tally(would, until, other_costs),
            assumed_attempts=self._course.assumed_attempts if self._course else 0,
            late_cancels=self._course.late_cancels if self._course else 0,
            jobs=self._jobs(happened),
        )

    def _counted(self, stories: Stories) -> list[Story]:
        """The jobs that were submitted in the window."""
        return [story for story in stories.values() if story.arrived.position > self._asked.after_position]

    def _jobs(self, happened: list[Story]) -> list[JobTold]:
        first = self._asked.jobs_offset
        chosen = happened[first : first + self._asked.jobs_limit]
        return [self._job(story, self.other_stories[story.job_id]) for story in chosen]

    def _job(self, story: Story, other: Story) -> JobTold:
        until = self._last.at
        return JobTold(
            job_id=story.job_id,
            user_id=story.user_id,
            priority=story.priority,
            outcome=outcome_word(story),
            what_if_outcome=outcome_word(other),
            wait_s=round(wait_s(story, until) or 0.0, 3),
            what_if_wait_s=round(wait_s(other, until) or 0.0, 3),
            attempts=story.attempts_made,
            what_if_attempts=other.attempts_made,
        )
