"""The fast way through a long past tells the same as the reader with envelopes."""

import gc
from uuid import uuid4

import asyncpg
import pytest

from shared.contracts import catalogue
from shared.contracts.job import Event, JobLateFact
from shared.contracts.upcasts import UPCASTS
from shared.eventstore import replay as replaying
from shared.eventstore.replay import rare_collections, replay
from tests.support.log import LogDatabase, StoreFor, a_fact, a_job_stream, an_account_event, an_append

_INSERT = """
insert into log.events (
    global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
)
select
    global_position + 1, gen_random_uuid(), stream, stream_version + 1, $1, $2, meta, correlation_id, recorded_at, hash
from log.events order by global_position desc limit 1
"""

Told = list[tuple[str, Event | None]]


async def _told(database: LogDatabase, **options: int | str) -> Told:
    told: Told = []
    async with asyncpg.create_pool(database.dsn("inspector"), min_size=1, max_size=2) as pool:
        count = await replay(pool, lambda stream, event: told.append((stream, event)), **options)  # pyright: ignore[reportArgumentType]
    assert count == len(told)
    return told


async def _fill(store_for: StoreFor, count: int) -> None:
    jobs, accounts = await store_for("scheduler"), await store_for("billing")
    for number in range(count):
        await jobs.append(an_append(a_job_stream(), a_fact(f"fact {number}")))
        await accounts.append(an_append(f"account-{uuid4()}", an_account_event()))


async def test_replay_tells_what_read_does_page_by_page(
    log_database: LogDatabase, store_for: StoreFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "PAGE_EVENTS", 3)
    await _fill(store_for, 5)
    read = [(one.stream, catalogue.decode(one)) for one in await (await store_for("scheduler")).read()]
    assert await _told(log_database) == read
    assert await _told(log_database, after=3, up_to=8) == read[3:8]
    assert await _told(log_database, category="job") == read[::2]


async def test_replay_of_an_empty_log_tells_nothing(log_database: LogDatabase) -> None:
    assert await _told(log_database) == []


async def test_events_of_unknown_and_older_types_keep_their_place(
    log_database: LogDatabase, store_for: StoreFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "PAGE_EVENTS", 4)
    newer = "job.late_fact.v1", catalogue.encode(a_fact("brought up to date"))
    monkeypatch.setitem(UPCASTS, "account.old_fact.v1", lambda _: newer)
    await _fill(store_for, 2)
    superuser = await asyncpg.connect(log_database.superuser_dsn)
    for type_, data in (
        ("account.from_the_future.v9", b'{"type":"account.from_the_future.v9"}'),
        ("account.old_fact.v1", b"{}"),
    ):
        await superuser.execute(_INSERT, type_, data)
    await superuser.close()
    await _fill(store_for, 1)
    told = [event for _, event in await _told(log_database)]
    assert told[4] is None
    assert isinstance(told[5], JobLateFact)
    assert told[5].fact == "brought up to date"
    assert None not in told[:4] + told[5:]


def test_collections_are_as_before_after_a_fold() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    with rare_collections():
        assert gc.get_threshold() != before[0]
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
