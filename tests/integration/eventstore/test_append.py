"""What only the log in Postgres promises: order under contention, group commits, the caller's own transaction."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import msgspec
import pytest

from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import Append, Appended, VersionConflict
from shared.eventstore.group_commit import GroupCommit
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.rows import encode
from shared.problems import Unavailable
from tests.support.log import LogDatabase, StoreFor, a_fact, a_job_stream, an_account_event, an_append
from tests.support.waiting import eventually

CLIENTS, FLUSHERS, HOT_STREAMS, TRIES = 64, 4, 40, 40


def fact(event: RecordedEvent) -> str:
    return getattr(catalogue.decode(event), "fact", "")


async def append_for_ever_so_often(store: PostgresEventStore, name: str, streams: list[str]) -> list[Appended]:
    """One client: appends one to three events to hot streams, sometimes with an old version; what was accepted."""
    accepted: list[Appended] = []
    known: Counter[str] = Counter()
    chance = random.Random(name)  # noqa: S311 - a test that can be repeated
    for n in range(TRIES):
        stream = chance.choice(streams)
        events = [a_fact(f"{name}/{n}") for _ in range(chance.randint(1, 3))]
        try:
            done = await store.append(an_append(stream, *events, expected_version=known[stream]))
        except VersionConflict as conflict:
            known[stream] = conflict.actual_version if chance.random() < 0.7 else 0
        else:
            assert done.last_position - done.first_position == len(events) - 1
            accepted.append(done)
            known[stream] = done.version
    return accepted


async def read_until(dsn: str, done: asyncio.Event) -> list[int]:
    """A reader that pages by plain position; what it saw, in its order."""
    seen: list[int] = []
    connection = await asyncpg.connect(dsn)
    query = await connection.prepare(
        "select global_position from log.events where global_position > $1 order by 1 limit 100"
    )
    while True:
        ending = done.is_set()
        rows = await query.fetch(seen[-1] if seen else 0)
        seen += [row[0] for row in rows]
        if ending and not rows:
            break
    await connection.close()
    return seen


async def test_contending_writers_lose_nothing_double_nothing_and_tell_every_loser(log_database: LogDatabase) -> None:
    streams = [a_job_stream() for _ in range(HOT_STREAMS)]
    done = asyncio.Event()
    async with AsyncExitStack() as stack:
        dsn = log_database.dsn("scheduler")
        stores = [await stack.enter_async_context(PostgresEventStore.open(dsn, connections=2)) for _ in range(FLUSHERS)]
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read_until(log_database.dsn("inspector"), done))
            clients = [
                group.create_task(append_for_ever_so_often(stores[n % FLUSHERS], f"client {n}", streams))
                for n in range(CLIENTS)
            ]
            await asyncio.wait(clients)
            done.set()
        accepted = [one for client in clients for one in client.result()]
        stored = await stores[0].read(limit=100_000)
    assert reader.result() == [event.global_position for event in stored]
    assert sorted(p for a in accepted for p in range(a.first_position, a.last_position + 1)) == reader.result()
    assert reader.result() == list(range(1, len(stored) + 1))
    assert 0 < len(accepted) < CLIENTS * TRIES, "there were winners and losers"
    for stream in streams:
        versions = [event.stream_version for event in stored if event.stream == stream]
        assert versions == list(range(1, len(versions) + 1))
    for one in accepted:
        facts = {fact(event) for event in stored[one.first_position - 1 : one.last_position]}
        assert len(facts) == 1, "one command's events are neighbours"


async def test_two_commands_of_one_batch_at_one_version_are_not_both_accepted(store_for: StoreFor) -> None:
    store = await store_for("scheduler")
    stream, other = a_job_stream(), a_job_stream()
    late = an_append(stream, a_fact("late"), expected_version=5)
    winner = an_append(stream, a_fact("first"), a_fact("second"))
    loser = an_append(stream, a_fact("lost"))
    elsewhere = an_append(other, a_fact("elsewhere"))
    outcomes = await asyncio.gather(
        *(store.append(append) for append in (late, winner, loser, elsewhere)), return_exceptions=True
    )
    assert isinstance(outcomes[0], VersionConflict)
    assert outcomes[1] == Appended(first_position=1, last_position=2, version=2)
    assert isinstance(outcomes[2], VersionConflict)
    assert outcomes[2].actual_version == 2
    assert outcomes[3] == Appended(first_position=3, last_position=3, version=1)
    stored = await store.read()
    assert [fact(event) for event in stored] == ["first", "second", "elsewhere"]
    assert len({event.recorded_at for event in stored}) == 1, "it was one batch, in which nothing had to be repeated"


async def test_reader_does_not_skip_slow_transaction_that_began_earlier(
    store_for: StoreFor, log_database: LogDatabase
) -> None:
    store = await store_for("scheduler")
    slow = await asyncpg.connect(log_database.dsn("scheduler"))
    transaction = slow.transaction()
    await transaction.start()
    (early,) = await store.append_in(slow, [an_append(a_job_stream(), a_fact("slow"))])
    async with asyncio.TaskGroup() as group:
        fast = group.create_task(store.append(an_append(a_job_stream(), a_fact("fast"))))

        async def fast_waits_for_the_lock() -> bool:
            waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            return await slow.fetchval(waiting) == 1

        await eventually(fast_waits_for_the_lock)
        assert await store.read() == []
        await transaction.commit()
    await slow.close()
    assert isinstance(early, Appended)
    assert early.first_position < fast.result().first_position
    assert [fact(event) for event in await store.read()] == ["slow", "fast"]


async def test_append_in_commits_and_rolls_back_with_its_transaction(
    store_for: StoreFor, log_database: LogDatabase
) -> None:
    store = await store_for("scheduler")
    stream = a_job_stream()
    connection = await asyncpg.connect(log_database.dsn("scheduler"))
    undone = connection.transaction()
    await undone.start()
    await store.append_in(connection, [an_append(stream)])
    await undone.rollback()
    assert await store.read() == []
    async with connection.transaction():
        first, second = await store.append_in(
            connection, [an_append(stream, a_fact("a")), an_append(stream, a_fact("b"), expected_version=4)]
        )
        assert await store.append_in(connection, []) == []
    await connection.close()
    assert first == Appended(first_position=1, last_position=1, version=1)
    assert isinstance(second, VersionConflict)
    assert second.actual_version == 1
    assert [fact(event) for event in await store.read()] == ["a"]


async def test_append_under_an_older_snapshot_is_refused(store_for: StoreFor, log_database: LogDatabase) -> None:
    store = await store_for("scheduler")
    connection = await asyncpg.connect(log_database.dsn("scheduler"))
    with pytest.raises(asyncpg.InvalidTransactionStateError, match="read committed"):
        async with connection.transaction(isolation="repeatable_read"):
            await store.append_in(connection, [an_append(a_job_stream())])
    await connection.close()


async def test_one_commands_error_reaches_its_caller_alone(store_for: StoreFor) -> None:
    store = await store_for("scheduler")
    good = [store.append(an_append(a_job_stream(), a_fact(str(n)))) for n in range(5)]
    foreign = store.append(an_append("account-1", an_account_event()))
    outcomes = await asyncio.gather(*good, foreign, return_exceptions=True)
    assert isinstance(outcomes[-1], asyncpg.InsufficientPrivilegeError)
    assert all(isinstance(outcome, Appended) for outcome in outcomes[:-1])
    assert sorted(fact(event) for event in await store.read()) == list("01234")


async def test_cancelled_caller_harms_no_other(store_for: StoreFor) -> None:
    store = await store_for("scheduler")
    for _ in range(20):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(store.append(an_append(a_job_stream()))) for _ in range(8)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.sleep(0)
            tasks[3].cancel()
        assert all(task.cancelled() or task.result() for task in tasks)
        assert sum(not task.cancelled() for task in tasks) >= 6


async def test_callers_wait_when_the_queue_is_full(
    store_for: StoreFor, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.eventstore.group_commit.QUEUE_COMMANDS", 4)
    async with asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=2) as pool:
        group = GroupCommit(pool)
        done = await asyncio.gather(*(group.commit(encode(an_append(a_job_stream()))) for _ in range(50)))
        await group.close()
    assert {one.first_position for one in done} == set(range(1, 51))
    assert await (await store_for("billing")).head() == 50


async def cut_connections(log: LogDatabase, role: str) -> None:
    connection = await asyncpg.connect(log.superuser_dsn)
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1 and datname = $2", role, log.name
    )
    await connection.close()


async def test_lost_connection_gives_unavailable_and_the_next_append_works(
    store_for: StoreFor, log_database: LogDatabase
) -> None:
    store = await store_for("scheduler")
    blocker = await asyncpg.connect(log_database.superuser_dsn)
    lock = blocker.transaction()
    await lock.start()
    await blocker.execute("lock table log.events in access exclusive mode")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(outcome_of(store, an_append(a_job_stream()))) for _ in range(3)]

        async def is_stuck() -> bool:
            return await blocker.fetchval("select count(*) from pg_locks where not granted") > 0

        await eventually(is_stuck)
        await cut_connections(log_database, "scheduler")
    await lock.rollback()
    await blocker.close()
    assert [type(task.result()) for task in waiting] == [Unavailable] * 3
    assert isinstance(await outcome_of(store, an_append(a_job_stream())), Appended)
    assert await store.head() == 1


async def outcome_of(store: PostgresEventStore, append: Append) -> Any:
    try:
        return await store.append(append)
    except (Unavailable, VersionConflict) as error:
        return error


async def test_listener_survives_a_cut_connection(store_for: StoreFor, log_database: LogDatabase) -> None:
    listening = await store_for("billing")
    writing = await store_for("scheduler")
    turns = listening.listen()
    async with asyncio.timeout(60):
        await anext(turns)
        await cut_connections(log_database, "billing")
        await writing.append(an_append(a_job_stream()))
        await anext(turns)
        await anext(turns)
    assert await listening.head() == 1
    await turns.aclose()


async def test_payload_is_stored_as_it_was_encoded_and_readable_as_jsonb(
    store_for: StoreFor, log_database: LogDatabase
) -> None:
    store = await store_for("scheduler")
    await store.append(an_append(a_job_stream(), a_fact("sn\N{SNOWMAN}w")))
    (event,) = await store.read()
    connection = await asyncpg.connect(log_database.dsn("inspector"))
    row = await connection.fetchrow("select data ->> 'fact' as fact, data, meta, hash from log.readable")
    await connection.close()
    assert row is not None
    assert row["fact"] == "sn\N{SNOWMAN}w"
    assert msgspec.json.decode(row["data"]) == msgspec.json.decode(event.data)
    assert row["hash"] == event.hash.hex()
