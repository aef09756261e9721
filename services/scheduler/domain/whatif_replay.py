"""The log's own decisions taken again: same order, same moments, or the first one that differs, by name.

A decision is a slot given, a wait explained, or what followed a failed attempt. The first two are made in rounds, whose
events are neighbours in the log and say what was seen (`DecisionBasis`); what was committed between that and the round
itself is held back until the next one. Older events do not say it: there a round ends with its commit, and it was
decided on whatever stood before it, or on the shortest part of that which gives the same.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from services.scheduler.domain import queue_policy, retry_policy
from services.scheduler.domain.queue_policy import (
    MAX_EXPLANATIONS,
    Limits,
    Placement,
    RunningJob,
    Wait,
    WaitingJob,
    admit,
)
from services.scheduler.domain.queue_row import QueueRow, evolve_row, running_job, waiting_job
from services.scheduler.domain.retry_policy import GiveUp, Retry
from services.scheduler.domain.whatif_policy import Rules
from services.scheduler.domain.whatif_story import Mark, Story
from shared.contracts.job import (
    DecisionBasis,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobDispatched,
    JobFailed,
    JobQueued,
    JobWaitExplained,
)
from shared.contracts.offers import AUTO
from shared.contracts.whatif import Decisions, Difference

RoundEvent = JobDispatched | JobWaitExplained
AfterFailure = JobQueued | JobFailed
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Known(msgspec.Struct, frozen=True):
    """One event of a job."""

    job_id: UUID
    event: Event
    mark: Mark


class Decided(msgspec.Struct, frozen=True):
    """A decision: its job, what it was, and everything that was said of it, the new attempt's id excepted.

    Under other limits the same decision is told in other words: there `what` alone is compared, here the words too.
    """

    job_id: UUID
    what: str
    words: str


class Rows:
    """The live jobs up to some position, kept as the policy takes them."""

    def __init__(self) -> None:
        self.rows: dict[UUID, QueueRow] = {}
        self.waiting: dict[UUID, WaitingJob] = {}
        self.running: dict[UUID, RunningJob] = {}
        self.told: dict[UUID, str | None] = {}

    def apply(self, known: Known) -> None:
        """One more event."""
        job_id = known.job_id
        before = self.rows.get(job_id)
        row = evolve_row(before, known.event, job_id, known.mark.position)
        if row is before:
            return
        self.waiting.pop(job_id, None)
        self.running.pop(job_id, None)
        self.told.pop(job_id, None)
        if row is None:
            self.rows.pop(job_id, None)
            return
        self.rows[job_id] = row
        if (waits := waiting_job(row)) is not None:
            self.waiting[job_id] = waits
            self.told[job_id] = row.wait_reason
        elif (runs := running_job(row)) is not None:
            self.running[job_id] = runs

    def copy(self) -> "Rows":
        """The same, to go on apart."""
        made = Rows()
        made.rows, made.waiting, made.running = dict(self.rows), dict(self.waiting), dict(self.running)
        made.told = dict(self.told)
        return made


class Replay:
    """Takes `job` events in log order and decides each round again, until a decision differs."""

    def __init__(self, rules: Rules, in_force: Limits) -> None:
        self.in_force = in_force
        """Of the last decision that said so; until then what the caller knows."""
        self.difference: Difference | None = None
        self.differs_at: Mark | None = None
        self._rules = rules
        self._rows = Rows()
        self._held_back: list[Known] = []
        self._round: list[Known] = []
        self._skipped: Known | None = None
        self._seen_at = LONG_AGO
        self._failed: dict[UUID, tuple[JobAttemptFailed, int]] = {}
        self._counts = {"recorded": 0, "reproduced": 0, "dispatches": 0, "explanations": 0, "retries": 0, "old": 0}

    @property
    def decisions(self) -> Decisions:
        """What was compared so far."""
        return Decisions(
            recorded=self._counts["recorded"],
            reproduced=self._counts["reproduced"],
            dispatches=self._counts["dispatches"],
            explanations=self._counts["explanations"],
            retries=self._counts["retries"],
            without_basis=self._counts["old"],
            first_difference=self.difference,
        )

    def skip(self, known: Known) -> None:
        """An event of before the window: it counts, and is not decided again."""
        self._note_limits(known.event)
        if isinstance(known.event, RoundEvent):
            if self._skipped is None or not _same_round(self._skipped, known):
                self._catch_up(known.mark.position)  # the next round sees all of this
            self._skipped = known
        self._held_back.append(known)

    def take(self, known: Known, story: Story | None) -> None:
        """The next event; `story` is its job's, told up to before it."""
        event = known.event
        if self._skipped is not None and isinstance(event, RoundEvent) and _same_round(self._skipped, known):
            self.skip(known)  # the window begins inside a round
            return
        if isinstance(event, RoundEvent):
            if self._round and not _same_round(self._round[-1], known):
                self._decide_round()
            self._round.append(known)
        elif self.difference is None:
            self._decide_round()
            self._take_other(known, story)
        elif isinstance(event, AfterFailure) and self._follows_failure(known):
            self._count("retries")
        if isinstance(event, JobAttemptFailed):
            self._failed[known.job_id] = (event, known.mark.position)

    def finish(self) -> None:
        """There are no more events."""
        self._decide_round()

    # ---- what followed a failed attempt ------------------------------------------------------------------------------

    def _take_other(self, known: Known, story: Story | None) -> None:
        if self._follows_failure(known) and story is not None:
            failure, _ = self._failed.pop(known.job_id)
            self._decide_retry(known, failure, story)
        self._held_back.append(known)

    def _follows_failure(self, known: Known) -> bool:
        """Whether the event was written with a failure of its job, as what comes of it."""
        _, position = self._failed.get(known.job_id, (None, 0))
        return position > 0 and known.mark.position == position + 1

    def _decide_retry(self, known: Known, failure: JobAttemptFailed, story: Story) -> None:
        if isinstance(known.event, JobCancelled):
            return  # it was asked to end: nothing to decide
        self._count("retries")
        decided = retry_policy.after_failure(
            failure.kind,
            story.attempts_made,
            story.max_attempts,
            self._rules.retry,
            spared=story.spared,
            anywhere=story.provider == AUTO,
        )
        if _is_same_retry(known.event, decided, failure.failed_at):
            self._counts["reproduced"] += 1
        else:
            self._differ(known, _retry_words(known.event), decided.reason)

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def _decide_round(self) -> None:
        """Decides the round that is complete, and lets the next one see it."""
        round_, self._round = self._round, []
        if not round_:
            return
        for known in round_:
            self._count("dispatches" if isinstance(known.event, JobDispatched) else "explanations")
            self._counts["old"] += _basis(known) is None
        if self.difference is None:
            self._compare(round_)
        if self.difference is None:
            self._held_back += round_

    def _compare(self, round_: Sequence[Known]) -> None:
        self._note_limits(round_[0].event)
        decided = self._decided_again(round_)
        recorded = [_recorded(known) for known in round_]
        same = self._common(recorded, decided)
        self._counts["reproduced"] += same
        if same == len(recorded) == len(decided):
            return
        self._differ(
            round_[min(same, len(round_) - 1)],
            _words_at(recorded, same),
            _words_at(decided, same),
            round_[0].mark,
        )

    def _decided_again(self, round_: Sequence[Known]) -> list[Decided]:
        basis = _basis(round_[0])
        if basis is not None:
            self._catch_up(basis.seen_position)
            return self._decide(self._rows, basis.decided_at, self._held_back)
        return self._decided_without_basis(round_)

    def _decided_without_basis(self, round_: Sequence[Known]) -> list[Decided]:
        """On everything that stood before, else on the shortest beginning of it that gives what is recorded."""
        recorded = [_recorded(known) for known in round_]
        early, seen_at = self._rows.copy(), self._seen_at
        unseen, self._held_back = self._held_back, []
        for known in unseen:
            self._rows.apply(known)
        self._seen_at = unseen[-1].mark.at if unseen else seen_at
        decided: list[Decided] = []
        for now in _moments(round_, round_[0].mark.at, self._seen_at):
            decided = self._decide(self._rows, now, ())
            if self._is_same(recorded, decided):
                return decided
        for number, known in enumerate(unseen):
            for now in _moments(round_, known.mark.at, seen_at):
                earlier = self._decide(early, now, unseen[number:])
                if self._is_same(recorded, earlier):
                    return earlier
            early.apply(known)
            seen_at = known.mark.at
        return decided

    def _catch_up(self, position: int) -> None:
        seen = 0
        for known in self._held_back:
            if known.mark.position > position:
                break
            self._rows.apply(known)
            self._seen_at = known.mark.at
            seen += 1
        del self._held_back[:seen]

    def _decide(self, rows: Rows, now: datetime, unseen: Sequence[Known]) -> list[Decided]:
        """What a round writes; a job that moved while it was decided on is left to the next round."""
        limits = self._rules.limits(self.in_force)
        admission = admit(list(rows.waiting.values()), list(rows.running.values()), limits, now, self._rules.order)
        waits = queue_policy.unexplained(admission, rows.told)[:MAX_EXPLANATIONS]
        moved = {known.job_id for known in unseen}
        placed = [_placed(placement, rows.rows[placement.job.job_id]) for placement in admission.dispatches]
        return [one for one in [*placed, *(_waits(wait) for wait in waits)] if one.job_id not in moved]

    def _common(self, recorded: Sequence[Decided], decided: Sequence[Decided]) -> int:
        """How many decisions from the first on are the same."""
        if self._rules.limits(self.in_force) != self.in_force:
            recorded, decided = _in_substance(recorded), _in_substance(decided)
        shorter = min(len(recorded), len(decided))
        return next((number for number in range(shorter) if recorded[number] != decided[number]), shorter)

    def _is_same(self, recorded: Sequence[Decided], decided: Sequence[Decided]) -> bool:
        return len(recorded) == len(decided) == self._common(recorded, decided)

    def _differ(self, known: Known, recorded: str, decided: str, begins: Mark | None = None) -> None:
        mark = begins or known.mark
        self.differs_at = mark
        self.difference = Difference(
            position=known.mark.position, at=mark.at, job_id=known.job_id, recorded=recorded, decided=decided
        )

    def _count(self, kind: str) -> None:
        self._counts["recorded"] += 1
        self._counts[kind] += 1

    def _note_limits(self, event: Event) -> None:
        basis = event.basis if isinstance(event, JobDispatched | JobWaitExplained) else None
        if basis is not None:
            self.in_force = Limits(in_all=basis.slots_in_all, per_user=basis.slots_per_user)


def _basis(known: Known) -> DecisionBasis | None:
    return known.event.basis if isinstance(known.event, JobDispatched | JobWaitExplained) else None


def _same_round(before: Known, known: Known) -> bool:
    """Neighbours that were decided on the same; without a basis, neighbours that were committed together."""
    is_next = known.mark.position == before.mark.position + 1
    return is_next and _basis(known) == _basis(before) and known.mark.at == before.mark.at


def _moments(round_: Sequence[Known], at_most: datetime, at_least: datetime) -> list[datetime]:
    """When a round without a basis may have been decided: its dispatches say it, else it was between the two."""
    said = [known.event.dispatched_at for known in round_ if isinstance(known.event, JobDispatched)]
    return said[:1] or [at_most, at_least]


def _recorded(known: Known) -> Decided:
    match known.event:
        case JobDispatched() as event:
            return _dispatch(known.job_id, event.attempt_number, event.provider, event.reason)
        case JobWaitExplained() as event:
            return _wait(known.job_id, event.reason, event.detail, event.limit, event.holders)
        case _:
            raise TypeError("a round consists of dispatches and explanations")


def _placed(placement: Placement, row: QueueRow) -> Decided:
    return _dispatch(row.job_id, row.attempt_number + 1, row.provider, placement.reason)


def _waits(wait: Wait) -> Decided:
    return _wait(wait.job.job_id, wait.reason, wait.detail, wait.limit, wait.holders)


def _dispatch(job_id: UUID, attempt_number: int, provider: str, reason: str) -> Decided:
    what = f"attempt {attempt_number} at {provider}"
    return Decided(job_id, what, f"{what}: {reason}")


def _wait(job_id: UUID, reason: str, detail: str, limit: int, holders: Sequence[str]) -> Decided:
    return Decided(job_id, reason, f"{reason}: {detail} (limit {limit}; held by {', '.join(holders) or 'nobody'})")


def _in_substance(decisions: Sequence[Decided]) -> list[Decided]:
    return [Decided(decided.job_id, decided.what, "") for decided in decisions]


def _words_at(decisions: Sequence[Decided], number: int) -> str:
    if number >= len(decisions):
        return "nothing further in this round"
    return f"job {decisions[number].job_id}: {decisions[number].words}"


def _is_same_retry(event: Event, decided: Retry | GiveUp, failed_at: datetime) -> bool:
    match event, decided:
        case JobQueued(), Retry():
            not_before = failed_at + timedelta(seconds=decided.delay_s) if decided.delay_s else None
            return (event.queued_at, event.not_before, event.reason) == (failed_at, not_before, decided.reason)
        case JobFailed(), GiveUp():
            return event.message.endswith(f"(not tried again: {decided.reason})")
        case _:
            return False


def _retry_words(event: Event) -> str:
    match event:
        case JobQueued():
            return event.reason
        case JobFailed():
            return event.message
        case _:
            return type(event).__name__
