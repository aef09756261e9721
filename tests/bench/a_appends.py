"""Durable ordered appends, beside the bare insert of the same bytes.

Ours is `PostgresEventStore.append`: version check, rights, hash chain, gapless positions in commit order, one event a
command. The bare insert is done by the same flusher over the same connection, group-committed and fsynced alike: one
`insert … select from unnest` of the same bytes into a table with the same columns and the same five indexes (an
identity column gives the position, the hash is a constant), without checks, order or rights. A third table has its
primary key alone.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import asyncpg

from shared.clock import utc_now
from shared.contracts.envelope import EventMetadata
from shared.contracts.job import JobLateFact
from shared.eventstore.api import Append, Appended
from shared.eventstore.group_commit import Connection, GroupCommit, Outcome
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.rows import Encoded, encode
from shared.ids import new_id
from tests.bench.bench import Bench, percentile, ratio_at_least
from tests.bench.servers import fresh_log
from tests.support.log import LogDatabase

WRITERS = (1, 16, 64)
SECONDS = 0.5
_VERSIONS = 8
_FACT = "late facts are recorded beside the end of a job; this one is as long as an event usually is: " + "x" * 160
_HASH = b"\xa5" * 32

_TABLES = """
create schema bare;
create table bare.events (
    global_position bigint generated always as identity primary key,
    event_id uuid not null unique,
    stream text not null,
    category text not null,
    stream_version int not null,
    type text not null,
    data bytea not null,
    meta bytea not null,
    correlation_id uuid not null,
    recorded_at timestamptz not null default clock_timestamp(),
    hash bytea not null,
    unique (stream, stream_version)
);
create index on bare.events (category, global_position);
create index on bare.events (correlation_id, global_position);
create table bare.keyed (like bare.events including defaults including identity, primary key (global_position));
grant usage on schema bare to scheduler;
grant insert, select on all tables in schema bare to scheduler;
"""
_INSERT = """
insert into {table} (event_id, stream, category, stream_version, type, data, meta, correlation_id, hash)
select * from unnest(
    $1::uuid[], $2::text[], $3::text[], $4::int[], $5::text[], $6::bytea[], $7::bytea[], $8::uuid[], $9::bytea[]
)
returning global_position
"""

Commit = Callable[[Append], Awaitable[Appended]]


async def run(bench: Bench) -> None:
    """Appends a second at 1, 16 and 64 writers; the targets are those of 16 and 64."""
    async with fresh_log(bench) as database, _three_ways(database) as (ours, bare, keyed):
        for writers in WRITERS:
            delays: list[float] = []
            rounds = await bench.interleaved(
                ours=partial(_rate, ours, writers, delays),
                bare=partial(_rate, bare, writers, []),
                keyed=partial(_rate, keyed, writers, []),
            )
            name = f"appends, {writers} writer{'s' * (writers > 1)}"
            bench.record(
                name,
                rounds["ours"],
                "1/s",
                limit=rounds["bare"],
                limit_is="bare insert",
                target=ratio_at_least(0.7) if writers > 1 else None,
                note=f"p50 {percentile(delays, 0.5) * 1e3:.2f} ms, p99 {percentile(delays, 0.99) * 1e3:.2f} ms",
            )
            keyed_limit = "bare insert, primary key alone"
            bench.record(f"{name}, again", rounds["ours"], "1/s", limit=rounds["keyed"], limit_is=keyed_limit)


@asynccontextmanager
async def _three_ways(database: LogDatabase) -> AsyncGenerator[tuple[Commit, Commit, Commit]]:
    admin = await asyncpg.connect(database.superuser_dsn)
    await admin.execute(_TABLES)
    await admin.close()
    async with asyncpg.create_pool(database.dsn("scheduler"), min_size=3, max_size=6) as pool:
        store = PostgresEventStore(pool)
        groups = [GroupCommit(pool, write=partial(_insert, table)) for table in ("bare.events", "bare.keyed")]

        def bare(group: GroupCommit) -> Commit:
            return lambda append: group.commit(encode(append))

        try:
            yield store.append, bare(groups[0]), bare(groups[1])
        finally:
            for one in (store, *groups):
                await one.close()


async def _insert(table: str, connection: Connection, batch: Sequence[Encoded]) -> list[Outcome]:
    """The bare insert of a batch: no order, no check, no chain."""
    rows = await connection.fetch(
        _INSERT.format(table=table),
        [event.event_id for command in batch for event in command.events],
        [command.stream for command in batch for _ in command.events],
        [command.stream.partition("-")[0] for command in batch for _ in command.events],
        [command.expected_version + 1 + n for command in batch for n in range(len(command.events))],
        [event.type for command in batch for event in command.events],
        [event.data for command in batch for event in command.events],
        [command.meta for command in batch for _ in command.events],
        [command.correlation_id for command in batch for _ in command.events],
        [_HASH for command in batch for _ in command.events],
    )
    return [
        Appended(first_position=row["global_position"], last_position=row["global_position"], version=0) for row in rows
    ]


async def _rate(commit: Commit, writers: int, delays: list[float]) -> float:
    """Events a second that so many writers get committed, each waiting for its own before the next."""
    started = time.perf_counter()
    end = started + SECONDS
    done = await asyncio.gather(*(_write(commit, end, delays) for _ in range(writers)))
    return sum(done) / (time.perf_counter() - started)


async def _write(commit: Commit, end: float, delays: list[float]) -> int:
    count = 0
    while True:
        job_id = new_id()
        for version in range(_VERSIONS):
            started = time.perf_counter()
            if started >= end:
                return count
            await commit(
                Append(
                    stream=f"job-{job_id}",
                    expected_version=version,
                    events=(JobLateFact(fact=_FACT, attempt_id=None, at=utc_now()),),
                    meta=EventMetadata(actor="system:scheduler", causation_id=uuid4()),
                    correlation_id=job_id,
                )
            )
            delays.append(time.perf_counter() - started)
            count += 1
