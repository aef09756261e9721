"""What the queries of storage do: claims on packing work, stored objects, and report lines."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from services.storage.outbound.reports import SQL
from tests.sim.database import Row, Transaction
from tests.sim.twins import twin

FAMILY = "storage"


@twin(SQL, FAMILY)
async def enqueue_pack_job(t: Transaction, job_id: UUID, command: bytes, envelope: bytes, not_before: datetime) -> None:
    """Remembers the work; a repeat changes nothing."""
    await t.lock("pack_jobs", job_id)
    if t.get("pack_jobs", job_id) is None:
        row = {"job_id": job_id, "command": command, "envelope": envelope, "not_before": not_before, "tries": 0}
        t.put("pack_jobs", job_id, {**row, "claimed_by": None, "claimed_until": None, "done_at": None})


@twin(SQL, FAMILY)
async def claim_pack_job(t: Transaction, worker: UUID, now: datetime, until: datetime) -> list[Row]:
    """The work that has waited longest and that nobody has."""
    free = [
        row
        for row in t.rows("pack_jobs")
        if row["done_at"] is None
        and row["not_before"] <= now
        and (row["claimed_until"] is None or row["claimed_until"] <= now)
        and not t.is_locked_by_others("pack_jobs", row["job_id"])
    ]
    if not free:
        return []
    job_id = min(free, key=lambda row: (row["not_before"], row["job_id"].bytes))["job_id"]
    await t.lock("pack_jobs", job_id)
    row = t.get("pack_jobs", job_id)
    assert row is not None  # nobody else held it
    t.change("pack_jobs", job_id, claimed_by=worker, claimed_until=until, tries=row["tries"] + 1)
    return [{"command": row["command"], "envelope": row["envelope"], "tries": row["tries"] + 1}]


@twin(SQL, FAMILY)
async def renew_pack_claim(t: Transaction, job_id: UUID, worker: UUID, until: datetime) -> list[Row]:
    """Keeps a claim; no row when somebody else has it."""
    await t.lock("pack_jobs", job_id)
    row = t.get("pack_jobs", job_id)
    if row is None or row["claimed_by"] != worker:
        return []
    t.change("pack_jobs", job_id, claimed_until=until)
    return [{"job_id": job_id}]


@twin(SQL, FAMILY)
async def release_pack_claim(
    t: Transaction, job_id: UUID, worker: UUID, not_before: datetime, _reason: str, uncounted: int
) -> None:
    """Gives the work back."""
    await t.lock("pack_jobs", job_id)
    row = t.get("pack_jobs", job_id)
    if row is not None and row["claimed_by"] == worker:
        tries = row["tries"] - uncounted
        t.change("pack_jobs", job_id, claimed_by=None, claimed_until=None, not_before=not_before, tries=tries)


@twin(SQL, FAMILY)
async def finish_pack_job(t: Transaction, job_id: UUID, at: datetime) -> None:
    """Nothing is left to do."""
    await t.lock("pack_jobs", job_id)
    t.change("pack_jobs", job_id, done_at=at, claimed_by=None, claimed_until=None)


@twin(SQL, FAMILY)
def upsert_object(t: Transaction, bucket: str, object_key: str, version: int, *values: Any) -> None:
    """The newest content of a key."""
    known = t.get("objects", (bucket, object_key))
    if known is None or known["version"] < version:
        t.put("objects", (bucket, object_key), {"version": version, "values": values})


@twin(SQL, FAMILY)
def insert_dataset(t: Transaction, sha256: str, *values: Any) -> None:
    """A packed dataset; the first job dates it."""
    if t.get("datasets", sha256) is None:
        t.put("datasets", sha256, {"values": values})


@twin(SQL, FAMILY)
async def lock_report_job(t: Transaction, job_id: UUID) -> list[Row]:
    """The job's last cursor, held until commit."""
    await t.lock("report_jobs", job_id)
    row = t.get("report_jobs", job_id) or {"last_cursor": 0}
    t.put("report_jobs", job_id, row)
    return [row]


@twin(SQL, FAMILY)
async def open_report_attempt(t: Transaction, attempt_id: UUID, job_id: UUID, day: date, at: datetime) -> list[Row]:
    """The attempt's day and ack."""
    await t.lock("report_attempts", attempt_id)
    row = t.get("report_attempts", attempt_id) or {"job_id": job_id, "day": day, "ack": 0, "last_at": at}
    t.put("report_attempts", attempt_id, {**row, "last_at": max(row["last_at"], at)})
    return [{"job_id": row["job_id"], "day": row["day"], "ack": row["ack"]}]


@twin(SQL, FAMILY)
def insert_reports(  # noqa: PLR0913, PLR0917 - the query's parameters
    t: Transaction,
    day: date,
    job_id: UUID,
    attempt_id: UUID,
    last_cursor: int,
    seqs: Sequence[int],
    types: Sequence[str],
    times: Sequence[datetime],
    lines: Sequence[bytes],
    ack: int,
) -> list[Row]:
    """Stores the new lines under the next cursors, in order of seq."""
    stored: list[Row] = []
    fresh = sorted(zip(seqs, types, times, lines, strict=True))
    for seq, type_, ts, line in fresh:
        if seq <= ack or t.get("reports", (day, attempt_id, seq)) is not None:
            continue
        cursor = last_cursor + len(stored) + 1
        row = {"job_id": job_id, "attempt_id": attempt_id, "seq": seq, "cursor": cursor, "type": type_, "ts": ts}
        t.put("reports", (day, attempt_id, seq), {**row, "line": line})
        stored.append({"cursor": cursor, "type": type_})
    return stored


@twin(SQL, FAMILY)
def contiguous_ack(t: Transaction, day: date, attempt_id: UUID, ack: int) -> list[Row]:
    """The highest seq up to which there is no gap."""
    while t.get("reports", (day, attempt_id, ack + 1)) is not None:
        ack += 1
    return [{"ack": ack}]


@twin(SQL, FAMILY)
def save_report_ack(t: Transaction, attempt_id: UUID, ack: int) -> None:
    """What the attempt may be told."""
    t.change("report_attempts", attempt_id, ack=ack)


@twin(SQL, FAMILY)
def save_report_cursor(t: Transaction, job_id: UUID, cursor: int) -> None:
    """Where the job's next line goes on."""
    t.change("report_jobs", job_id, last_cursor=cursor)
