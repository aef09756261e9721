"""What would have followed: the jobs' stories go on under other rules, from the first decision that differs.

Arrivals, the moments at which jobs were ready to queue, and cancels stay where they were in time. An attempt holds its
slot as long as it did, and ends as it did, whenever it begins. A round follows every change at once.

What the log cannot tell is assumed, and counted: an attempt that never happened goes as the job's last one did; without
one it holds its slot for the median of its user's attempts, and finishes. One that was cut by a cancel lasts until
that cancel; one that runs at the log's end lasts at least as long as it has.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from services.scheduler.domain import retry_policy
from services.scheduler.domain.queue_policy import Limits, RunningJob, WaitingJob, admit
from services.scheduler.domain.whatif_line import Line
from services.scheduler.domain.whatif_policy import Rules
from services.scheduler.domain.whatif_story import Ending, Mark, Stories, Story, Visit, cut, end, release
from shared.contracts.offers import AUTO

NOT_IN_LOG = 2**62
"""The position of what only would have happened: behind everything recorded at the same moment."""
DEFAULT_HOLD = timedelta(minutes=30)
"""When not one attempt of the whole window has ended."""
STEPS_PER_YIELD = 200


class Fate(msgspec.Struct, frozen=True):
    """How an attempt goes. `hold` None: until it is cancelled, or for ever."""

    hold: timedelta | None
    ending: Ending
    failure_kind: str = ""
    spared: bool = False
    idle: timedelta = timedelta(0)
    """The part of `hold` that is not billed: start and end."""


class Course:
    """The stories from a position on. Iterating over `run` carries it out, `stories` is what came of it."""

    def __init__(self, recorded: Stories, rules: Rules, in_force: Limits, *, begins: Mark, until: Mark) -> None:
        self.stories: dict[UUID, Story] = {}
        self.assumed_attempts = 0
        self.late_cancels = 0
        self._recorded = recorded
        self._rules = rules
        self._limits = rules.limits(in_force)
        self._begins, self._until = begins.at, until.at
        self._fates = _Fates(recorded, until.at)
        self._line = Line(rules.order)
        self._delayed: dict[UUID, WaitingJob] = {}
        self._running: dict[UUID, RunningJob] = {}
        self._held: Counter[str] = Counter()
        self._due: list[tuple[datetime, int, int, str, UUID, int]] = []
        self._number = 0
        for story in recorded.values():
            self._enter(story, begins)

    def run(self) -> Iterator[None]:
        """Carries on to the end of the window, with a pause for others after some steps."""
        self._round(self._begins)
        steps = 0
        while self._due and self._due[0][0] <= self._until:
            now = self._due[0][0]
            while self._due and self._due[0][0] == now:
                self._step(now)
                steps += 1
            self._round(now)
            if steps >= STEPS_PER_YIELD:
                steps = 0
                yield

    # ---- where it begins ---------------------------------------------------------------------------------------------

    def _enter(self, recorded: Story, begins: Mark) -> None:
        """Takes a job up where the log leaves it, and puts what comes from outside in its place."""
        job_id = recorded.job_id
        if recorded.arrived.position >= begins.position:
            self.stories[job_id] = msgspec.structs.replace(cut(recorded, recorded.arrived.position + 1), visits=[])
        else:
            self.stories[job_id] = cut(recorded, begins.position)
        story = self.stories[job_id]
        if story.outcome is not None:
            return
        if recorded.cancel is not None and recorded.cancel.position >= begins.position:
            self._at(recorded.cancel.at, "cancel", job_id, position=recorded.cancel.position)
        if story.visits:
            self._resume(story, recorded, begins)
        elif recorded.visits:
            ready = recorded.visits[0].queued
            self._at(ready.at, "ready", job_id, position=ready.position)
        elif recorded.ended is not None and recorded.outcome != "cancelled":  # it never got as far as the queue
            self._at(recorded.ended.at, "refused", job_id, position=recorded.ended.position)

    def _resume(self, story: Story, recorded: Story, begins: Mark) -> None:
        visit = story.visits[-1]
        original = recorded.visits[len(story.visits) - 1]
        if visit.dispatched is None:
            self._wait(story, visit, begins.at)
        elif visit.released is None:
            self._hold(story)
            was_asked = story.cancel is not None
            fate = (as_recorded(original) if was_asked else None) or self._fates.of(recorded, story.attempts_made - 1)
            self._begin(story, visit, fate, max(begins.at, visit.dispatched.at))
        elif visit.ending == "failed":
            self._after_failure(story, visit, visit.released)
        else:
            end(story, "completed", visit.released)

    # ---- one thing after the other -----------------------------------------------------------------------------------

    def _at(self, at: datetime, kind: str, job_id: UUID, *, position: int = NOT_IN_LOG, visit: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._due, (at, position, self._number, kind, job_id, visit))

    def _step(self, now: datetime) -> None:
        _, position, _, kind, job_id, visit = heapq.heappop(self._due)
        story = self.stories[job_id]
        match kind:
            case "ready" if story.outcome is None:
                original = self._recorded[job_id].visits[0]
                made = Visit(queued=original.queued, queued_at=original.queued_at, not_before=original.not_before)
                story.visits.append(made)
                self._wait(story, made, now)
            case "due" if (job := self._delayed.pop(job_id, None)) is not None:
                self._line.add(job)
            case "release" if story.holds and len(story.visits) == visit:
                self._release(story, Mark(NOT_IN_LOG, now))
            case "cancel":
                self._cancel(story, Mark(position, now))
            case "refused" if story.outcome is None:
                end(story, self._recorded[job_id].outcome or "failed", Mark(position, now))
            case _:
                return

    def _wait(self, story: Story, visit: Visit, now: datetime) -> None:
        job = WaitingJob(
            job_id=story.job_id,
            user_id=story.user_id,
            priority=story.priority,
            queued_at=visit.queued_at,
            position=visit.queued.position,
            not_before=visit.not_before,
        )
        if job.not_before is not None and job.not_before > now:
            self._delayed[job.job_id] = job
            self._at(job.not_before, "due", job.job_id)
        else:
            self._line.add(job)

    def _hold(self, story: Story) -> None:
        self._running[story.job_id] = RunningJob(job_id=story.job_id, user_id=story.user_id)
        self._held[story.user_id] += 1

    def _round(self, now: datetime) -> None:
        """Gives out what is free; the policy decides, over every job that it could give a slot to."""
        free = self._limits.in_all - len(self._running)
        if free <= 0 or not len(self._line):
            return
        able = self._line.candidates(self._limits, self._held, free)
        if not able:
            return
        admission = admit(able, list(self._running.values()), self._limits, now, self._rules.order)
        for placed in admission.dispatches:
            self._dispatch(self.stories[placed.job.job_id], now)

    def _dispatch(self, story: Story, now: datetime) -> None:
        self._line.drop(story.job_id)
        self._hold(story)
        visit = story.visits[-1]
        visit.dispatched = Mark(NOT_IN_LOG, now)
        recorded = self._recorded[story.job_id]
        if story.attempts_made > recorded.attempts_made:
            self.assumed_attempts += 1
        self._begin(story, visit, self._fates.of(recorded, story.attempts_made - 1), now)

    def _begin(self, story: Story, visit: Visit, fate: Fate, now: datetime) -> None:
        """The attempt runs: it will end in its own time, if nobody ends it before."""
        if visit.dispatched is None:
            return
        visit.ending, visit.failure_kind, visit.spared = fate.ending, fate.failure_kind, fate.spared
        visit.idle = fate.idle
        if fate.hold is not None:
            self._at(max(visit.dispatched.at + fate.hold, now), "release", story.job_id, visit=len(story.visits))

    def _release(self, story: Story, mark: Mark) -> None:
        """The attempt ends as its fate says, or as a cancel that came before."""
        visit = story.visits[-1]
        ending = "cancelled" if story.cancel is not None else visit.ending or "finished"
        self._free(story, mark, ending)
        match ending:
            case "failed":
                self._after_failure(story, visit, mark)
            case "finished":
                end(story, "completed", mark)
            case "cancelled":
                end(story, "cancelled", mark)

    def _free(self, story: Story, mark: Mark, ending: Ending) -> None:
        visit = story.visits[-1]
        release(story, ending, mark, visit.failure_kind, spared=visit.spared)
        del self._running[story.job_id]
        self._held[story.user_id] -= 1
        if visit.dispatched is not None:
            used = mark.at - visit.dispatched.at - visit.idle
            visit.billed_seconds = max(round(used / timedelta(seconds=1)), 0)

    def _after_failure(self, story: Story, visit: Visit, mark: Mark) -> None:
        decided = retry_policy.after_failure(
            visit.failure_kind,
            story.attempts_made,
            story.max_attempts,
            self._rules.retry,
            spared=story.spared,
            anywhere=story.provider == AUTO,
        )
        if isinstance(decided, retry_policy.GiveUp):
            end(story, "failed", mark)
            return
        not_before = mark.at + timedelta(seconds=decided.delay_s) if decided.delay_s else None
        again = Visit(queued=mark, queued_at=mark.at, not_before=not_before)
        story.visits.append(again)
        self._wait(story, again, mark.at)

    def _cancel(self, story: Story, mark: Mark) -> None:
        """The user asks for the end when they did; a job that would have ended by then is not cancelled."""
        if story.outcome is not None:
            self.late_cancels += 1
            return
        story.cancel = mark
        if story.holds:
            lag = self._fates.cancel_lag(self._recorded[story.job_id])
            self._at(mark.at + lag, "release", story.job_id, visit=len(story.visits))
            return
        self._line.drop(story.job_id)
        self._delayed.pop(story.job_id, None)
        end(story, "cancelled", mark)


class _Fates:
    """How attempts go, from how those in the log went."""

    def __init__(self, recorded: Stories, until: datetime) -> None:
        self._until = until
        holds: dict[str, list[timedelta]] = {}
        for story in recorded.values():
            mine = holds.setdefault(story.user_id, [])
            mine += [hold for visit in story.visits if (hold := _hold_of(visit)) is not None]
        self._of_user = {user_id: _middle(mine) for user_id, mine in holds.items() if mine}
        everyone = [hold for mine in holds.values() for hold in mine]
        self._of_all = _middle(everyone) if everyone else DEFAULT_HOLD

    def of(self, recorded: Story, number: int) -> Fate:
        """The job's attempt of this number, counted from 0."""
        made = [visit for visit in recorded.visits if visit.dispatched is not None]
        if not made:
            return Fate(None if recorded.cancel else self._typical(recorded), "finished")
        visit = made[min(number, len(made) - 1)]
        fate = as_recorded(visit)
        if fate is None:
            so_far = self._until - visit.dispatched.at if visit.dispatched else timedelta(0)
            return Fate(None if recorded.cancel else max(so_far, self._typical(recorded)), "finished")
        is_cut = fate.ending == "cancelled" and recorded.cancel is not None
        return Fate(None, "cancelled", idle=fate.idle) if is_cut else fate

    def cancel_lag(self, recorded: Story) -> timedelta:
        """How long it took until the cancelled job's slot was free; none if it held none."""
        if recorded.cancel is None or recorded.ended is None:
            return timedelta(0)
        return recorded.ended.at - recorded.cancel.at

    def _typical(self, story: Story) -> timedelta:
        return self._of_user.get(story.user_id, self._of_all)


def as_recorded(visit: Visit) -> Fate | None:
    """How an attempt went; None while it runs."""
    if visit.dispatched is None or visit.released is None:
        return None
    hold = visit.released.at - visit.dispatched.at
    idle = max(hold - timedelta(seconds=visit.billed_seconds or 0), timedelta(0))
    return Fate(hold, visit.ending or "finished", visit.failure_kind, visit.spared, idle)


def _hold_of(visit: Visit) -> timedelta | None:
    if visit.dispatched is None or visit.released is None or visit.ending == "cancelled":
        return None
    return visit.released.at - visit.dispatched.at


def _middle(holds: list[timedelta]) -> timedelta:
    return sorted(holds)[len(holds) // 2]
