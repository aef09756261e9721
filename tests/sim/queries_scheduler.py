"""What the queries of the scheduler do: the queue's checkpoint and its rows."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from services.scheduler.projections.queue import QUERIES
from tests.sim.database import Row, Transaction
from tests.sim.twins import twin

FAMILY = "scheduler"
_LIVE = ("queued", "holding")
_CHANGING = ("phase", "position", "queued_at", "not_before", "attempt_number", "wait_reason")


@twin(QUERIES, FAMILY)
async def ensure_checkpoint(t: Transaction, durable: str) -> None:
    """Gives the queue its row."""
    await t.lock("checkpoint", durable)
    if t.get("checkpoint", durable) is None:
        t.put("checkpoint", durable, {"position": 0})


@twin(QUERIES, FAMILY)
async def lock_queue(t: Transaction, durable: str) -> list[Row]:
    """One dispatcher at a time."""
    await t.lock("checkpoint", durable)
    row = t.get("checkpoint", durable)
    return [row] if row else []


@twin(QUERIES, FAMILY)
def raise_checkpoint(t: Transaction, durable: str, position: int) -> None:
    """Up to here the rows are folded; the caller holds the row."""
    t.change("checkpoint", durable, position=position)


@twin(QUERIES, FAMILY)
def read_jobs(t: Transaction, ids: Sequence[UUID]) -> list[Row]:
    """Those of these jobs that live."""
    return [row for job_id in ids if (row := t.get("jobs", job_id)) is not None]


@twin(QUERIES, FAMILY)
def read_queue(t: Transaction) -> list[Row]:
    """Every job that waits or holds a slot."""
    return [row for row in t.rows("jobs") if row["phase"] in _LIVE]


@twin(QUERIES, FAMILY)
def read_holding(t: Transaction) -> list[Row]:
    """Every job that holds a slot."""
    return [row for row in t.rows("jobs") if row["phase"] == "holding"]


@twin(QUERIES, FAMILY)
def read_next(
    t: Transaction, now: datetime, limit: int, users: Sequence[str], free: Sequence[int], others: int
) -> list[Row]:
    """Who runs next, in queue order."""
    left = dict(zip(users, free, strict=True))
    found: list[Row] = []
    for row in _in_line(t):
        left.setdefault(row["user_id"], others)
        if (row["not_before"] is None or row["not_before"] <= now) and left[row["user_id"]] > 0:
            left[row["user_id"]] -= 1
            found.append(row)
    return found[:limit]


@twin(QUERIES, FAMILY)
def read_mistold(
    t: Transaction,
    now: datetime,
    limit: int,
    users: Sequence[str],
    free: Sequence[int],
    others: int,
    chosen: Sequence[UUID],
) -> list[Row]:
    """Who waits for another reason than they were last told."""
    left = dict(zip(users, free, strict=True))

    def reason(row: Row) -> str:
        if row["not_before"] is not None and row["not_before"] > now:
            return "retry_delay"
        return "user_limit" if left.get(row["user_id"], others) <= 0 else "global_limit"

    found = [row for row in _in_line(t) if row["job_id"] not in chosen and row["wait_reason"] != reason(row)]
    return found[:limit]


@twin(QUERIES, FAMILY)
def next_due(t: Transaction, now: datetime) -> list[Row]:
    """When the first delayed job may run."""
    times = [row["not_before"] for row in _in_line(t) if row["not_before"] is not None and row["not_before"] > now]
    return [{"min": min(times, default=None)}]


@twin(QUERIES, FAMILY)
def save_jobs(t: Transaction, *columns: Sequence[Any]) -> None:
    """The rows as the fold says; who and how urgent never changes."""
    for job_id, user_id, provider, priority, *rest in zip(*columns, strict=True):
        who = {"job_id": job_id, "user_id": user_id, "provider": provider, "priority": priority}
        known = t.get("jobs", job_id) or who
        t.put("jobs", job_id, {**known, **dict(zip(_CHANGING, rest, strict=True))})


def _in_line(t: Transaction) -> list[Row]:
    queued = [row for row in t.rows("jobs") if row["phase"] == "queued" and row["queued_at"] is not None]
    return sorted(queued, key=lambda row: (-row["priority"], row["queued_at"], row["position"]))


@twin(QUERIES, FAMILY)
def drop_jobs(t: Transaction, ids: Sequence[UUID]) -> None:
    """Forgets jobs that have ended."""
    for job_id in ids:
        t.drop("jobs", job_id)
