"""The waiting jobs of a simulated queue, kept so that a round looks only at those that could get a slot."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from services.scheduler.domain.queue_policy import Limits, Order, WaitingJob, queue_order

Key = tuple[int, datetime, int]


class Line:
    """Ready jobs, per user and in the order of the policy. Jobs whose delay has not passed are kept elsewhere."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._ready: defaultdict[str, list[tuple[Key, WaitingJob]]] = defaultdict(list)
        self._jobs: dict[UUID, tuple[Key, WaitingJob]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: WaitingJob) -> None:
        """The job may have a slot from now on."""
        entry = (self._key(job), job)
        self._jobs[job.job_id] = entry
        insort(self._ready[job.user_id], entry, key=lambda one: one[0])

    def drop(self, job_id: UUID) -> None:
        """The job waits no longer; nothing if it does not wait here."""
        entry = self._jobs.pop(job_id, None)
        if entry is None:
            return
        key, job = entry
        mine = self._ready[job.user_id]
        place = bisect_left(mine, key, key=lambda one: one[0])
        while mine[place][1].job_id != job_id:
            place += 1
        del mine[place]
        if not mine:
            del self._ready[job.user_id]

    def candidates(self, limits: Limits, held: Mapping[str, int], free: int) -> list[WaitingJob]:
        """Every job that any order could give one of the `free` slots: of each user the first that their limit lets in.

        Within a user's own jobs every order agrees, so those further behind are passed over whatever the others do.
        """
        found: list[WaitingJob] = []
        for user_id, ready in self._ready.items():
            room = min(limits.of(user_id) - held.get(user_id, 0), free)
            found += [job for _, job in ready[: max(room, 0)]]
        return found

    def _key(self, job: WaitingJob) -> Key:
        priority, queued_at, position = queue_order(job)
        return (0 if self._order == "fifo" else priority, queued_at, position)
