"""`job_sums`: how many jobs of each kind there are, what they cost, how long they ran; kept while jobs are folded."""

from collections.abc import Mapping
from datetime import UTC, date, timedelta

import msgspec

from services.gateway.domain.job_body import Status, status_of
from services.gateway.domain.views import JobView

_MILLISECOND = timedelta(milliseconds=1)


class SumKey(msgspec.Struct, frozen=True):
    """Which jobs are summed: those submitted on a day (UTC) that are in the same state now."""

    day: date
    provider: str
    status: Status
    visible: bool


class JobSum(msgspec.Struct, frozen=True):
    """`timed_jobs` started and have ended; `duration_ms` is theirs together, `cost_micro_usd` what all have cost."""

    jobs: int = 0
    cost_micro_usd: int = 0
    timed_jobs: int = 0
    duration_ms: int = 0

    def plus(self, other: "JobSum", sign: int) -> "JobSum":
        """The sum with another one added (1) or taken away (-1)."""
        return JobSum(
            self.jobs + sign * other.jobs,
            self.cost_micro_usd + sign * other.cost_micro_usd,
            self.timed_jobs + sign * other.timed_jobs,
            self.duration_ms + sign * other.duration_ms,
        )


Sums = Mapping[SumKey, JobSum]


def add_change(sums: dict[SumKey, JobSum], before: JobView, after: JobView) -> None:
    """Takes away what the job counted for and adds what it counts for now."""
    for view, sign in ((before, -1), (after, 1)):
        key = sum_key(view)
        if key is not None:
            sums[key] = sums.get(key, JobSum()).plus(counts_for(view), sign)


def sum_key(view: JobView) -> SumKey | None:
    """Where a job counts; nowhere before it was accepted."""
    facts = view.job
    if facts.submitted_at is None:
        return None
    return SumKey(facts.submitted_at.astimezone(UTC).date(), facts.provider, status_of(view), view.visible)


def counts_for(view: JobView) -> JobSum:
    """What one job adds: its cost as far as it is booked, its time once it has ended."""
    facts, money = view.job, view.money
    booked = money.captured_micro_usd
    cost = sum(money.metered_micro_usd.values()) if booked is None else booked
    if facts.started_at is None or facts.ended_at is None:
        return JobSum(1, cost)
    return JobSum(1, cost, 1, max(0, (facts.ended_at - facts.started_at) // _MILLISECOND))
