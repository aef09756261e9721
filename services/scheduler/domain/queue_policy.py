"""Who runs next: pure, so that the same queue and limits always give the same answer.

Order is priority (high first), then `queued_at`, then position in the log. A job that its user's limit or its retry
delay holds back is passed over and blocks nobody; a slot never stays free while a job that may take it waits.

The service decides by this order alone; the others are for `tunewright whatif`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, assert_never
from uuid import UUID

import msgspec

MAX_HOLDERS = 10
"""How many holders of slots an explanation names."""

MAX_EXPLANATIONS = 50
"""Waits explained in one round; the rest in the next ones, which follow at once."""

WaitReason = Literal["global_limit", "user_limit", "retry_delay"]

Order = Literal["priority", "fifo", "fair_share"]
"""priority: as above. fifo: the same without priorities. fair_share: the fewest slots of one's user first, then as
above; a user's second waiting job counts as if the first had its slot already."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs may hold a slot at the same time: in all, and of one user."""

    in_all: int
    per_user: int
    of_users: Mapping[str, int] = {}
    """User -> a limit of their own instead of `per_user`."""

    def of(self, user_id: str) -> int:
        """How many slots this user may hold."""
        return self.of_users.get(user_id, self.per_user)


class WaitingJob(msgspec.Struct, frozen=True, kw_only=True):
    """A queued job as the policy sees it; `position` is where its last JobQueued stands in the log."""

    job_id: UUID
    user_id: str
    priority: int
    queued_at: datetime
    position: int
    not_before: datetime | None = None


class RunningJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that holds a slot."""

    job_id: UUID
    user_id: str


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """This job gets a slot now, and why."""

    job: WaitingJob
    reason: str


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """This job does not run now, and why."""

    job: WaitingJob
    reason: WaitReason
    detail: str
    limit: int
    holders: tuple[str, ...]


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """Every waiting job is in exactly one of the two, both in queue order."""

    dispatches: list[Placement]
    waits: list[Wait]


def queue_order(job: WaitingJob) -> tuple[int, datetime, int]:
    """Sorts the queue: the smallest key runs first."""
    return (-job.priority, job.queued_at, job.position)


def in_line(
    waiting: Iterable[WaitingJob], running: Iterable[RunningJob], order: Order, now: datetime
) -> list[WaitingJob]:
    """The waiting jobs, who runs first first."""
    match order:
        case "priority":
            return sorted(waiting, key=queue_order)
        case "fifo":
            return sorted(waiting, key=lambda job: (job.queued_at, job.position))
        case "fair_share":
            return _by_share(sorted(waiting, key=queue_order), Counter(job.user_id for job in running), now)
        case _:
            assert_never(order)


def _by_share(waiting: Sequence[WaitingJob], slots: Counter[str], now: datetime) -> list[WaitingJob]:
    shares: dict[UUID, int] = {}
    for job in waiting:
        shares[job.job_id] = slots[job.user_id]
        slots[job.user_id] += not _is_delayed(job, now)
    return sorted(waiting, key=lambda job: shares[job.job_id])


def unexplained(admission: Admission, told: Mapping[UUID, str | None]) -> list[Wait]:
    """The waits with another reason than the job was last told, in queue order; a round writes MAX_EXPLANATIONS."""
    return [wait for wait in admission.waits if told.get(wait.job.job_id) != wait.reason]


def _is_delayed(job: WaitingJob, now: datetime) -> bool:
    return job.not_before is not None and job.not_before > now


def admit(
    waiting: Sequence[WaitingJob],
    running: Sequence[RunningJob],
    limits: Limits,
    now: datetime,
    order: Order = "priority",
) -> Admission:
    """Shares out the free slots; never gives more than the limits allow."""
    slots = _Slots(limits, running)
    dispatches: list[Placement] = []
    waits: list[Wait] = []
    for job in in_line(waiting, running, order, now):
        wait = slots.refusal(job, now)
        if wait is None:
            dispatches.append(Placement(job=job, reason=slots.take(job)))
        else:
            waits.append(wait)
    return Admission(dispatches=dispatches, waits=waits)


class _Slots:
    """The slots while they are shared out: who holds them, per user and in all."""

    def __init__(self, limits: Limits, running: Sequence[RunningJob]) -> None:
        self._limits = limits
        self._holders: list[str] = []
        self._of_user: defaultdict[str, list[str]] = defaultdict(list)
        for job in sorted(running, key=lambda held: held.job_id.bytes):
            self._hold(job.job_id, job.user_id)

    def _hold(self, job_id: UUID, user_id: str) -> None:
        self._holders.append(str(job_id))
        self._of_user[user_id].append(str(job_id))

    def refusal(self, job: WaitingJob, now: datetime) -> Wait | None:
        """Why the job cannot take a slot now. The user's limit is named before the global one: it is the tighter."""
        mine = self._of_user[job.user_id]
        if job.not_before is not None and job.not_before > now:
            detail = f"tried again not before {job.not_before.isoformat(timespec='seconds')}"
            return Wait(job=job, reason="retry_delay", detail=detail, limit=0, holders=())
        my_limit = self._limits.of(job.user_id)
        if len(mine) >= my_limit:
            detail = f"{len(mine)} of {my_limit} slots of this user are taken"
            return self._wait(job, "user_limit", detail, my_limit, mine)
        if len(self._holders) >= self._limits.in_all:
            detail = f"{len(self._holders)} of {self._limits.in_all} slots are taken"
            return self._wait(job, "global_limit", detail, self._limits.in_all, self._holders)
        return None

    def _wait(self, job: WaitingJob, reason: WaitReason, detail: str, limit: int, holders: list[str]) -> Wait:
        return Wait(job=job, reason=reason, detail=detail, limit=limit, holders=tuple(holders[:MAX_HOLDERS]))

    def take(self, job: WaitingJob) -> str:
        """Gives the job a slot and says why it was its turn."""
        self._hold(job.job_id, job.user_id)
        mine = len(self._of_user[job.user_id])
        return (
            f"first in line at priority {job.priority}; slot {len(self._holders)} of {self._limits.in_all}, "
            f"{mine} of {self._limits.of(job.user_id)} of its user"
        )
