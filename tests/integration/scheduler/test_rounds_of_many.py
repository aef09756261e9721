"""A round that looks at a few rows decides as one that looks at all of them, and stays quick however many wait."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec
import pytest

from services.scheduler.domain.queue_policy import Limits, admit, unexplained
from services.scheduler.domain.queue_row import QueueRow
from services.scheduler.projections import queue
from services.scheduler.projections.queue import QUERIES, Queue
from tests.support.log import LogDatabase

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
REASONS = (None, "user_limit", "global_limit", "retry_delay")
EXPLANATIONS = 5


@pytest.fixture
async def connection(log_database: LogDatabase) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(log_database.dsn("scheduler"))
    yield opened
    await opened.close()


def any_rows(draw: random.Random) -> list[QueueRow]:
    """Few users, moments and priorities, so that they meet; slots taken even above the limits."""

    def moment() -> datetime:
        return NOW + timedelta(seconds=draw.randint(-3, 3))

    return [
        QueueRow(
            job_id=UUID(int=draw.getrandbits(128)),
            user_id=draw.choice("abcd"),
            provider="local",
            priority=draw.choice([0, 10, 40]),
            phase=draw.choice(["preparing", "queued", "queued", "queued", "queued", "holding", "completing"]),
            position=number,
            queued_at=moment(),
            not_before=draw.choice([None, None, moment()]),
            wait_reason=draw.choice(REASONS),
        )
        for number in range(draw.randint(0, 30))
    ]


async def store_rows(connection: asyncpg.Connection, rows: list[QueueRow]) -> None:
    await connection.execute("DELETE FROM jobs")
    if rows:
        columns = zip(*(msgspec.structs.astuple(row) for row in rows), strict=True)
        await connection.execute(QUERIES.save_jobs, *columns)


def decided(seen: Queue, limits: Limits) -> tuple[object, object]:
    admission = admit(seen.waiting, seen.running, limits, NOW)
    told = {job_id: row.wait_reason for job_id, row in seen.rows.items()}
    return admission.dispatches, unexplained(admission, told)[:EXPLANATIONS]


@pytest.mark.parametrize("seed", range(4))
async def test_round_that_loads_a_few_rows_decides_as_one_that_loads_all(
    connection: asyncpg.Connection, seed: int
) -> None:
    """Reasons, details, holders and order included, for any queue, slots taken, limits and users with their own."""
    draw = random.Random(seed)  # noqa: S311 - rows, not secrets
    for _ in range(60):
        own = {user: draw.randint(0, 3) for user in "abe" if draw.random() < 0.3}
        limits = Limits(in_all=draw.randint(0, 6), per_user=draw.randint(0, 3), of_users=own)
        await store_rows(connection, any_rows(draw))
        everybody = await queue.load(connection)
        a_few = await queue.load_round(connection, limits, NOW, EXPLANATIONS)
        assert decided(a_few, limits) == decided(everybody, limits)
        assert set(a_few.rows) <= set(everybody.rows)
        due = [row.not_before for row in everybody.rows.values() if row.phase == "queued" and row.not_before]
        assert await queue.next_due(connection, NOW) == min((at for at in due if at > NOW), default=None)


async def test_round_loads_as_few_rows_of_ten_thousand_as_of_ten(connection: asyncpg.Connection) -> None:
    limits = Limits(in_all=5, per_user=2)
    rows = [
        QueueRow(
            job_id=UUID(int=number),
            user_id=f"user-{number % 100}",
            provider="local",
            priority=10,
            phase="holding" if number < 3 else "queued",
            position=number,
            queued_at=NOW + timedelta(seconds=number),
        )
        for number in range(10_000)
    ]
    await store_rows(connection, rows)
    seen = await queue.load_round(connection, limits, NOW, EXPLANATIONS)
    assert len(seen.rows) == 3 + 2 + EXPLANATIONS
    assert [job.job_id.int for job in sorted(seen.waiting, key=lambda job: job.position)][:2] == [3, 4]
