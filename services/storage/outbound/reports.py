"""Telemetry rows: what trainers report, kept by day, read by a cursor that never skips a late commit.

Every batch holds its job's row until commit, and cursors are handed out under that lock. So within a job cursor order
is commit order, and a reader at cursor N has seen everything up to N.
"""

from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from services.storage.domain.reports import StoredLine
from shared.problems import Rejected
from shared.sql import load_queries

SQL = load_queries(Path(__file__).parents[1] / "sql" / "queries.sql")

MAX_LINES = 10_000
MAX_PAGE_BYTES = 4 * 1024 * 1024
STATEMENT_TIMEOUT_S = 30.0


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch led to: `ack` for the trainer, the last new cursor of each type for readers who wait."""

    ack: int
    last_cursors: dict[str, int]


class ReportPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in arrival order with their cursors; `cursor` is where to read on."""

    lines: list[bytes]
    cursors: list[int]
    cursor: int


async def record(
    pool: asyncpg.Pool, job_id: UUID, attempt_id: UUID, lines: Sequence[StoredLine], now: datetime
) -> Recorded:
    """Commits the lines that are new; lines that are there already stay as they are.

    Raises:
        Rejected: `validation_error` when the attempt has reported for another job.
    """
    try:
        return await _record(pool, job_id, attempt_id, lines, now)
    except asyncpg.CheckViolationError:  # there is no partition for that day yet
        await ensure_partition(pool, await _day_of(pool, attempt_id, now))
        return await _record(pool, job_id, attempt_id, lines, now)


async def read(
    pool: asyncpg.Pool, job_id: UUID, *, after: int, types: Sequence[str], limit: int, tail: bool
) -> ReportPage:
    """One page of a job's lines; see `ReadReports`."""
    query = SQL.read_reports_tail if tail else SQL.read_reports_after
    rows = await pool.fetch(
        query,
        job_id,
        after,
        list(types),
        max(1, min(limit, MAX_LINES)),
        MAX_PAGE_BYTES,
        timeout=STATEMENT_TIMEOUT_S,
    )
    cursors = [row["cursor"] for row in rows]
    return ReportPage(lines=[row["line"] for row in rows], cursors=cursors, cursor=cursors[-1] if cursors else after)


async def ensure_partition(pool: asyncpg.Pool, day: date) -> None:
    """Makes room for attempts that begin on that day."""
    await pool.execute(SQL.ensure_report_partition, day, timeout=STATEMENT_TIMEOUT_S)


async def drop_partitions(pool: asyncpg.Pool, keep_from: date) -> int:
    """Forgets the days before `keep_from` whose attempts have all been quiet since; answers how many days."""
    dropped: int = await pool.fetchval(SQL.drop_report_partitions, keep_from, timeout=STATEMENT_TIMEOUT_S)
    return dropped


async def _record(
    pool: asyncpg.Pool, job_id: UUID, attempt_id: UUID, lines: Sequence[StoredLine], now: datetime
) -> Recorded:
    async with pool.acquire(timeout=STATEMENT_TIMEOUT_S) as conn, conn.transaction():
        last_cursor: int = await conn.fetchval(SQL.lock_report_job, job_id, timeout=STATEMENT_TIMEOUT_S)
        attempt = await conn.fetchrow(SQL.open_report_attempt, attempt_id, job_id, now.date(), now)
        if attempt is None or attempt["job_id"] != job_id:
            raise Rejected("validation_error", "this attempt reports for another job", attempt_id=str(attempt_id))
        stored = await conn.fetch(
            SQL.insert_reports,
            attempt["day"],
            job_id,
            attempt_id,
            last_cursor,
            [line.seq for line in lines],
            [line.type for line in lines],
            [line.ts for line in lines],
            [line.line for line in lines],
            attempt["ack"],
        )
        if not stored:
            return Recorded(ack=attempt["ack"], last_cursors={})
        ack: int = await conn.fetchval(SQL.contiguous_ack, attempt["day"], attempt_id, attempt["ack"])
        await conn.execute(SQL.save_report_ack, attempt_id, ack)
        await conn.execute(SQL.save_report_cursor, job_id, max(row["cursor"] for row in stored))
    last_cursors: dict[str, int] = {}
    for row in stored:
        last_cursors[row["type"]] = max(row["cursor"], last_cursors.get(row["type"], 0))
    return Recorded(ack=ack, last_cursors=last_cursors)


async def _day_of(pool: asyncpg.Pool, attempt_id: UUID, now: datetime) -> date:
    day: date | None = await pool.fetchval(SQL.report_attempt_day, attempt_id, timeout=STATEMENT_TIMEOUT_S)
    return day or now.date()
