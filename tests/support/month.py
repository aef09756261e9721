"""A month of jobs as a log would tell it: decided by the scheduler's and billing's own rules on a virtual clock.

Arrivals follow the time of day, users and priorities are uneven, attempts fail, are retried and cancelled. Rounds of
the dispatcher take their time: what is committed meanwhile is seen by the next one, as with the real thing.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from services.billing.domain import account
from services.billing.domain.pricing import Estimate, cost_micro_usd
from services.scheduler.domain import queue_policy
from services.scheduler.domain.job import decide
from services.scheduler.domain.job_commands import (
    Cancel,
    CompleteDelivery,
    Dispatch,
    ExplainWait,
    JobCommand,
    RecordAttemptCancelled,
    RecordAttemptFailed,
    RecordAttemptStarted,
    RecordDatasetsPacked,
    RecordFundsReserved,
    RecordPreparationRefused,
    RecordTrainingFinished,
    Submit,
)
from services.scheduler.domain.job_state import Absent, Dispatched, Ended, Job, Running, evolve
from services.scheduler.domain.queue_policy import MAX_EXPLANATIONS, Admission, Limits
from services.scheduler.domain.queue_row import QueueRow, evolve_row, running_job, waiting_job
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptFailed,
    AttemptRequested,
    AttemptStarted,
    AttemptSucceeded,
    Quote,
)
from shared.contracts.job import (
    DatasetRequest,
    DecisionBasis,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobDispatched,
    JobFailed,
    JobQueued,
    JobTrainingFinished,
    PackedDataset,
    SubmitJob,
)
from shared.ids import derived_id
from shared.problems import Rejected
from tests.support.bulk_log import PastEvent

BEGAN = datetime(2026, 10, 1, tzinfo=UTC)
PRICE = 1_200_000
"""Micro-dollars an hour at the one provider."""
CONFIG = {"--model_type": "lora", "--max_train_steps": "1000", "--learning_rate": "1e-4"}
KINDS = ("lost", "killed", "preempted", "internal", "out_of_memory", "nan_loss", "bad_data")
PRIORITIES = (0, 10, 10, 10, 10, 20, 20, 30, 40)
_WAKES = (JobQueued, JobCancelled, JobAttemptFailed, JobTrainingFinished, JobFailed)
_MS = timedelta(milliseconds=1)


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What the month is like. `has_basis` False: decisions as they were written before they said what they saw."""

    jobs: int = 300
    days: float = 30.0
    users: int = 12
    limits: Limits = Limits(in_all=20, per_user=6)
    later_limits: Limits | None = None
    """In force from the middle of the month on."""
    failing: float = 0.06
    cancelled: float = 0.05
    median_hold_s: float = 1800.0
    round_s: float = 0.008
    """The longest that a round takes between what it sees and what it writes."""
    has_basis: bool = True
    has_accounts: bool = True


class Month:
    """Makes the events of one month; the same seed and shape give the same jobs, moments and decisions."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self.events: list[PastEvent] = []
        self.rows: dict[UUID, QueueRow] = {}
        self._shape = shape
        self._random = random.Random(seed)  # noqa: S311 - a repeatable month, not a secret
        self._due: list[tuple[datetime, int, Callable[[datetime], None]]] = []
        self._number = 0
        self._jobs: dict[UUID, Job] = {}
        self._users: dict[UUID, str] = {}
        self._accounts: dict[str, account.Account] = {}
        self._seen = 0
        self._is_round_due = False

    def generate(self) -> list[PastEvent]:
        """Everything until the last job has ended."""
        for _ in range(self._shape.jobs):
            self._at(self._arrival(), self._submit)
        while self._due:
            at, _, act = heapq.heappop(self._due)
            act(at)
        return self.events

    # ---- time --------------------------------------------------------------------------------------------------------

    def _at(self, at: datetime, act: Callable[[datetime], None]) -> None:
        self._number += 1
        heapq.heappush(self._due, (at, self._number, act))

    def _soon(self, now: datetime, low_s: float, high_s: float) -> datetime:
        return now + timedelta(seconds=self._random.uniform(low_s, high_s))

    def _arrival(self) -> datetime:
        """Any moment of the month; most by day, fewer at the weekend."""
        while True:
            at = BEGAN + timedelta(days=self._random.random() * self._shape.days)
            by_day = 0.15 + 0.85 * max(0.0, math.sin(math.pi * (at.hour + at.minute / 60 - 6) / 14))
            if self._random.random() < by_day * (0.4 if at.isoweekday() > 5 else 1.0):
                return at

    # ---- what is written ---------------------------------------------------------------------------------------------

    def _write(self, stream: str, job_id: UUID, at: datetime, events: Sequence[Event]) -> None:
        for event in events:
            self.events.append(PastEvent(stream=stream, event=event, correlation_id=job_id, recorded_at=at))
            if stream.startswith("job-"):
                self._seen = len(self.events)

    def _job(self, job_id: UUID, command: JobCommand, at: datetime) -> Sequence[Event]:
        """The job's own decision, written; nothing if it refuses."""
        state = self._jobs.get(job_id, Absent())
        try:
            events = decide(state, command)
        except Rejected:
            return []
        self._write(f"job-{job_id}", job_id, at, events)
        for number, event in enumerate(events):
            state = evolve(state, event)
            position = self._seen - len(events) + number + 1
            row = evolve_row(self.rows.get(job_id), event, job_id, position)
            if row is None:
                self.rows.pop(job_id, None)
            else:
                self.rows[job_id] = row
            if isinstance(event, JobQueued) and event.not_before is not None:
                self._at(event.not_before, self._wake)
        self._jobs[job_id] = state
        if any(isinstance(event, _WAKES) for event in events):
            self._wake(at)
        if isinstance(state, Ended) and events:
            self._money(job_id, account.Settle(job_id=job_id, at=at), at)
        return events

    def _money(self, job_id: UUID, command: account.AccountCommand, at: datetime) -> None:
        if not self._shape.has_accounts:
            return
        stream = f"account-{derived_id(self._users[job_id], f'{BEGAN:%Y-%m}')}"
        state = self._accounts.get(stream, account.Unopened())
        try:
            events = account.decide(state, command)
        except Rejected:
            return
        for event in events:
            state = account.evolve(state, event)
        self._accounts[stream] = state
        self._write(stream, job_id, at, events)

    # ---- a job's way to the queue ------------------------------------------------------------------------------------

    def _submit(self, now: datetime) -> None:
        rng = self._random
        job_id = UUID(int=rng.getrandbits(128), version=4)
        self._users[job_id] = f"user-{min(int(rng.paretovariate(0.6)), self._shape.users):02d}"
        datasets = [DatasetRequest(dataset_id="pictures", path="/data/pictures")] if rng.random() < 0.5 else []
        order = SubmitJob(
            job_id=job_id,
            user_id=self._users[job_id],
            provider="local",
            priority=rng.choice(PRIORITIES),
            config=CONFIG,
            dataloader=[],
            datasets=datasets,
        )
        self._job(job_id, Submit(order=order, providers=("local",), at=now), now)
        self._at(self._soon(now, 0.005, 0.5), lambda at: self._reserve(job_id, at, has_data=bool(datasets)))
        if rng.random() < self._shape.cancelled:
            wanted = now + timedelta(seconds=rng.expovariate(1 / (2 * self._shape.median_hold_s)))
            self._at(wanted, lambda at: self._cancel(job_id, at))

    def _reserve(self, job_id: UUID, now: datetime, *, has_data: bool) -> None:
        if self._random.random() < 0.005:
            refused = RecordPreparationRefused(kind="funds_refused", message="no funds", advice=None, at=now)
            self._job(job_id, refused, now)
            return
        estimate = Estimate(seconds=3600, price_micro_usd_per_hour=PRICE, amount_micro_usd=cost_micro_usd(3600, PRICE))
        reserve = account.Reserve(
            job_id=job_id,
            owner=self._users[job_id],
            month=f"{BEGAN:%Y-%m}",
            provider="local",
            floor_micro_usd=None,
            estimate=estimate,
            at=now,
        )
        self._money(job_id, reserve, now)
        reserved = RecordFundsReserved(reserved_micro_usd=PRICE, price_micro_usd_per_hour=PRICE, at=now)
        self._job(job_id, reserved, now)
        if has_data:
            self._at(self._soon(now, 2, 90), lambda at: self._pack(job_id, at))

    def _pack(self, job_id: UUID, now: datetime) -> None:
        packed = [PackedDataset(dataset_id="pictures", sha256="0" * 64, size_bytes=10_000, file_count=10)]
        self._job(job_id, RecordDatasetsPacked(datasets=packed, at=now), now)

    def _cancel(self, job_id: UUID, now: datetime) -> None:
        self._job(job_id, Cancel(reason="asked by the user", at=now), now)
        state = self._jobs[job_id]
        if isinstance(state, Dispatched | Running):
            self._at(self._soon(now, 0.5, 15), lambda at: self._stop(job_id, state.attempt_id, at))

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def _wake(self, now: datetime) -> None:
        if not self._is_round_due:
            self._is_round_due = True
            self._at(max(now, BEGAN) + self._random.uniform(0.5, 6) * _MS, self._look)

    def _look(self, now: datetime) -> None:
        """The first half of a round: what is seen now is decided on."""
        waiting = [job for row in self.rows.values() if (job := waiting_job(row)) is not None]
        running = [job for row in self.rows.values() if (job := running_job(row)) is not None]
        limits = self._limits(now)
        admission = queue_policy.admit(waiting, running, limits, now)
        told = {job_id: row.wait_reason for job_id, row in self.rows.items()}
        basis = DecisionBasis(
            seen_position=self._seen,
            decided_at=now,
            slots_in_all=limits.in_all,
            slots_per_user=limits.per_user,
        )
        waits = queue_policy.unexplained(admission, told)
        states = {job_id: self._jobs[job_id] for job_id in self.rows}
        self._at(
            self._soon(now, 0.0002, self._shape.round_s), lambda at: self._commit(admission, waits, basis, states, at)
        )

    def _limits(self, now: datetime) -> Limits:
        is_late = now > BEGAN + timedelta(days=self._shape.days / 2)
        return self._shape.later_limits if is_late and self._shape.later_limits else self._shape.limits

    def _commit(
        self,
        admission: Admission,
        waits: list[queue_policy.Wait],
        basis: DecisionBasis,
        states: dict[UUID, Job],
        now: datetime,
    ) -> None:
        """The second half: what has not moved meanwhile is written, all at once."""
        self._is_round_due = False
        kept = basis if self._shape.has_basis else None
        for placed in admission.dispatches:
            job_id, attempt_id = placed.job.job_id, UUID(int=self._random.getrandbits(128), version=4)
            if self._jobs[job_id] is states[job_id]:
                dispatch = Dispatch(attempt_id=attempt_id, reason=placed.reason, at=basis.decided_at, basis=kept)
                for event in self._job(job_id, dispatch, now):
                    if isinstance(event, JobDispatched):
                        self._start(job_id, event, now)
        for wait in waits[:MAX_EXPLANATIONS]:
            if self._jobs[wait.job.job_id] is states[wait.job.job_id]:
                explain = ExplainWait(
                    reason=wait.reason, detail=wait.detail, limit=wait.limit, holders=wait.holders, basis=kept
                )
                self._job(wait.job.job_id, explain, now)
        if len(waits) > MAX_EXPLANATIONS or self._seen > basis.seen_position + len(admission.dispatches) + len(waits):
            self._wake(now)

    # ---- attempts ----------------------------------------------------------------------------------------------------

    def _start(self, job_id: UUID, event: JobDispatched, now: datetime) -> None:
        rng = self._random
        requested = AttemptRequested(
            job_id=job_id,
            attempt_number=event.attempt_number,
            provider=event.provider,
            quote=Quote(hardware="gpu", price_micro_usd_per_hour=PRICE),
            config=CONFIG,
            dataloader=[],
            datasets=[],
            resume=None,
            requested_at=now,
        )
        started = self._soon(now, 2, 60)
        hold_s = min(rng.lognormvariate(math.log(self._shape.median_hold_s), 0.8), 8 * 3600.0)
        kind = rng.choice(KINDS) if rng.random() < self._shape.failing else None
        ended = started + timedelta(seconds=hold_s * (rng.random() if kind else 1.0))
        attempt_id = event.attempt_id
        self._at(now + 5 * _MS, lambda at: self._write(f"attempt-{attempt_id}", job_id, at, [requested]))
        self._at(started, lambda at: self._say_hello(job_id, attempt_id, at))
        self._at(ended, lambda at: self._end(job_id, attempt_id, kind, started, at))

    def _say_hello(self, job_id: UUID, attempt_id: UUID, now: datetime) -> None:
        if self._is_current(job_id, attempt_id):
            self._write(f"attempt-{attempt_id}", job_id, now, [AttemptStarted(started_at=now, device="cuda")])
            self._job(job_id, RecordAttemptStarted(attempt_id=attempt_id, at=now), now)

    def _end(self, job_id: UUID, attempt_id: UUID, kind: str | None, started: datetime, now: datetime) -> None:
        """The attempt ends by itself, if it is still there."""
        if not self._is_current(job_id, attempt_id):
            return
        seconds = round((now - started) / timedelta(seconds=1))
        if kind is None:
            event: Event = AttemptSucceeded(
                steps=1000, final_loss=0.1, artifacts=[], undelivered=[], ended_at=now, billed_seconds=seconds
            )
            fact: JobCommand = RecordTrainingFinished(
                attempt_id=attempt_id, steps=1000, final_loss=0.1, artifacts=[], undelivered=[], at=now
            )
        else:
            event = AttemptFailed(
                kind=kind, message=kind, advice=None, exit_code=1, ended_at=now, billed_seconds=seconds
            )
            fact = RecordAttemptFailed(attempt_id=attempt_id, kind=kind, message=kind, advice=None, at=now)
        self._told(job_id, attempt_id, event, fact, seconds, now)

    def _stop(self, job_id: UUID, attempt_id: UUID, now: datetime) -> None:
        """The attempt is gone because it was asked to."""
        if self._is_current(job_id, attempt_id):
            event = AttemptCancelled(ended_at=now, billed_seconds=60)
            self._told(job_id, attempt_id, event, RecordAttemptCancelled(attempt_id=attempt_id, at=now), 60, now)

    def _told(
        self, job_id: UUID, attempt_id: UUID, event: Event, fact: JobCommand, seconds: int, now: datetime
    ) -> None:
        """The bridge's event, billing's metering, then the job's own, a little later."""
        self._write(f"attempt-{attempt_id}", job_id, now, [event])
        meter = account.Meter(
            job_id=job_id, attempt_id=attempt_id, seconds=seconds, price_micro_usd_per_hour=PRICE, at=now
        )
        self._money(job_id, meter, now)
        self._at(now + self._random.uniform(1, 20) * _MS, lambda at: self._keep(job_id, fact, at))

    def _keep(self, job_id: UUID, fact: JobCommand, now: datetime) -> None:
        self._job(job_id, fact, now)
        if isinstance(fact, RecordTrainingFinished):
            self._at(self._soon(now, 0.01, 0.3), lambda at: self._deliver(job_id, at))

    def _deliver(self, job_id: UUID, now: datetime) -> None:
        self._job(job_id, CompleteDelivery(missing=(), at=now), now)

    def _is_current(self, job_id: UUID, attempt_id: UUID) -> bool:
        state = self._jobs[job_id]
        return isinstance(state, Dispatched | Running) and state.attempt_id == attempt_id


def a_month(seed: int, shape: Shape) -> list[PastEvent]:
    """The events of a month, in log order."""
    return Month(seed, shape).generate()
