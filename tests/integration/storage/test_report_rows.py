"""Telemetry rows on a real Postgres: repeats, gaps, contention, readers that miss nothing, retention."""

import asyncio
import random
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.storage.domain.reports import StoredLine
from services.storage.outbound import reports
from services.storage.report_days import turn_report_days
from shared.problems import Rejected

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def a_stored_line(seq: int, type_: str = "log", size_bytes: int = 1) -> StoredLine:
    line = msgspec.json.encode({"seq": seq, "type": type_, "text": "x" * size_bytes})
    return StoredLine(seq=seq, type=type_, ts=NOW, line=line)


def lines(*seqs: int) -> list[StoredLine]:
    return [a_stored_line(seq) for seq in seqs]


async def read_seqs(pool: asyncpg.Pool, job_id: UUID, after: int = 0, limit: int = 1000) -> list[int]:
    page = await reports.read(pool, job_id, after=after, types=[], limit=limit, tail=False)
    return [msgspec.json.decode(line)["seq"] for line in page.lines]


async def test_a_repeat_stores_nothing_twice_and_keeps_the_first_content(storage_pool: asyncpg.Pool) -> None:
    job, attempt = uuid4(), uuid4()
    first = await reports.record(storage_pool, job, attempt, lines(1, 2), NOW)
    again = await reports.record(storage_pool, job, attempt, [a_stored_line(2, "metrics"), a_stored_line(3)], NOW)
    assert (first.ack, again.ack) == (2, 3)
    assert again.last_cursors == {"log": 3}
    assert await read_seqs(storage_pool, job) == [1, 2, 3]


async def test_the_ack_waits_at_a_gap_until_it_is_filled(storage_pool: asyncpg.Pool) -> None:
    job, attempt = uuid4(), uuid4()
    acks = [
        (await reports.record(storage_pool, job, attempt, lines(*seqs), NOW)).ack
        for seqs in ([2, 3], [5], [1], [7], [4], [6])
    ]
    assert acks == [0, 0, 3, 3, 5, 7]
    assert await read_seqs(storage_pool, job) == [2, 3, 5, 1, 7, 4, 6]


async def test_an_empty_batch_asks_for_the_ack(storage_pool: asyncpg.Pool) -> None:
    job, attempt = uuid4(), uuid4()
    await reports.record(storage_pool, job, attempt, lines(1, 2, 3), NOW)
    assert (await reports.record(storage_pool, job, attempt, [], NOW)).ack == 3


async def test_an_attempt_cannot_report_for_another_job(storage_pool: asyncpg.Pool) -> None:
    attempt = uuid4()
    await reports.record(storage_pool, uuid4(), attempt, lines(1), NOW)
    with pytest.raises(Rejected):
        await reports.record(storage_pool, uuid4(), attempt, lines(2), NOW)


async def test_a_resend_after_midnight_is_still_a_repeat(storage_pool: asyncpg.Pool) -> None:
    job, attempt = uuid4(), uuid4()
    await reports.record(storage_pool, job, attempt, lines(1, 2), NOW)
    recorded = await reports.record(storage_pool, job, attempt, lines(1, 2, 3), NOW + timedelta(days=1))
    assert recorded.ack == 3
    assert await read_seqs(storage_pool, job) == [1, 2, 3]


async def test_pages_by_cursor_and_type_and_tail(storage_pool: asyncpg.Pool) -> None:
    job, attempt = uuid4(), uuid4()
    batch = [a_stored_line(seq, "metrics" if seq % 2 else "log") for seq in range(1, 11)]
    await reports.record(storage_pool, job, attempt, batch, NOW)
    page = await reports.read(storage_pool, job, after=0, types=["metrics"], limit=3, tail=False)
    assert page.cursors == [1, 3, 5]
    page = await reports.read(storage_pool, job, after=page.cursor, types=["metrics"], limit=3, tail=False)
    assert page.cursors == [7, 9]
    page = await reports.read(storage_pool, job, after=page.cursor, types=["metrics"], limit=3, tail=False)
    assert (page.lines, page.cursor) == ([], 9)
    tail = await reports.read(storage_pool, job, after=0, types=["metrics", "log"], limit=3, tail=True)
    assert tail.cursors == [8, 9, 10]


async def test_a_page_stops_before_four_mebibytes_but_never_before_its_first_line(storage_pool: asyncpg.Pool) -> None:
    job, attempt = uuid4(), uuid4()
    mib = 1024**2
    for seq, size_bytes in ((1, 5 * mib), (2, mib), (3, mib), (4, 3 * mib)):
        await reports.record(storage_pool, job, attempt, [a_stored_line(seq, size_bytes=size_bytes)], NOW)
    assert await read_seqs(storage_pool, job) == [1]
    assert await read_seqs(storage_pool, job, after=1) == [2, 3]
    tail = await reports.read(storage_pool, job, after=0, types=[], limit=10, tail=True)
    assert tail.cursors == [4]


async def test_a_reader_never_skips_a_line_that_commits_late(storage_pool: asyncpg.Pool) -> None:
    """A writer that has its cursors but has not committed holds every later writer of the job back."""
    job, slow, fast = uuid4(), uuid4(), uuid4()
    await reports.record(storage_pool, job, slow, lines(1), NOW)
    async with storage_pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.fetchval(reports.SQL.lock_report_job, job)
        async with asyncio.TaskGroup() as group:
            later = group.create_task(reports.record(storage_pool, job, fast, lines(1), NOW))
            _, unfinished = await asyncio.wait({later}, timeout=0.3)
            assert later in unfinished
            assert await read_seqs(storage_pool, job) == [1]
            await transaction.rollback()
    assert later.result().ack == 1
    other_job = await reports.record(storage_pool, uuid4(), uuid4(), lines(1), NOW)
    assert other_job.ack == 1


async def test_a_reader_beside_contending_writers_sees_every_line_once_in_order(storage_pool: asyncpg.Pool) -> None:
    job = uuid4()
    attempts = [uuid4() for _ in range(6)]
    per_attempt = 60
    chance = random.Random(22)  # noqa: S311 - a seed for a test, not a secret
    seen: list[int] = []

    async def write(attempt: UUID) -> int:
        ack, seq = 0, 1
        while seq <= per_attempt:
            count = chance.randint(1, 9)
            batch = lines(*range(max(1, seq - chance.randint(0, 3)), min(seq + count, per_attempt + 1)))
            ack = (await reports.record(storage_pool, job, attempt, batch, NOW)).ack
            seq += count
        return ack

    async def read_all() -> None:
        cursor = 0
        while len(seen) < per_attempt * len(attempts):
            page = await reports.read(storage_pool, job, after=cursor, types=[], limit=7, tail=False)
            seen.extend(page.cursors)
            cursor = page.cursor

    async with asyncio.timeout(240), asyncio.TaskGroup() as group:
        writers = [group.create_task(write(attempt)) for attempt in attempts]
        group.create_task(read_all())
    assert [writer.result() for writer in writers] == [per_attempt] * len(attempts)
    assert seen == list(range(1, per_attempt * len(attempts) + 1))


async def test_days_past_their_retention_are_dropped_but_not_under_a_running_attempt(
    storage_pool: asyncpg.Pool,
) -> None:
    old_job, long_job = uuid4(), uuid4()
    long_attempt = uuid4()
    forty_days_ago, thirty_nine = NOW - timedelta(days=40), NOW - timedelta(days=39)
    await reports.record(storage_pool, old_job, uuid4(), lines(1, 2), forty_days_ago)
    await reports.record(storage_pool, long_job, long_attempt, lines(1), thirty_nine)
    await reports.record(storage_pool, long_job, long_attempt, lines(2), NOW)
    assert await turn_report_days(storage_pool, lambda: NOW, 30) == 1
    assert await read_seqs(storage_pool, old_job) == []
    assert await read_seqs(storage_pool, long_job) == [1, 2]


async def test_a_partition_is_made_once_by_many(storage_pool: asyncpg.Pool) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(reports.ensure_partition(storage_pool, date(2030, 1, 1)))
    partitions = "select count(*) from pg_inherits where inhrelid = to_regclass('storage.reports_20300101')"
    assert await storage_pool.fetchval(partitions) == 1
