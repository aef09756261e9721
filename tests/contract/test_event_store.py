"""What every event store promises, held by the one in Postgres and its twin in memory."""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import msgspec
import pytest

from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import EventStore, VersionConflict
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash
from shared.eventstore.memory import MemoryEventStore
from shared.eventstore.rows import MAX_EVENT_BYTES, encode_meta
from shared.problems import Rejected
from tests.support.log import StoreFor, a_fact, a_job_stream, an_append


@pytest.fixture
async def postgres_store(store_for: StoreFor) -> EventStore:
    return await store_for("scheduler")


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> EventStore:
    return MemoryEventStore() if request.param == "memory" else request.getfixturevalue("postgres_store")


def facts(events: list[RecordedEvent]) -> list[Any]:
    return [getattr(catalogue.decode(event), "fact", None) for event in events]


async def test_empty_log_has_head_zero_and_no_events(store: EventStore) -> None:
    assert await store.head() == 0
    assert await store.read() == []
    assert await store.read_stream(a_job_stream()) == []


async def test_appended_events_come_back_as_they_went_in(store: EventStore) -> None:
    stream, story = a_job_stream(), uuid4()
    event = a_fact('ä \N{SNOWMAN} " \\ \n')
    done = await store.append(an_append(stream, event, correlation_id=story))
    (back,) = await store.read_stream(stream)
    assert catalogue.decode(back) == event
    assert bytes(back.data) == catalogue.encode(event)
    assert (back.stream, back.stream_version, back.type) == (stream, 1, "job.late_fact.v1")
    assert (back.meta.actor, back.correlation_id, back.category) == ("user:test", story, "job")
    assert back.global_position == done.first_position == done.last_position == await store.head()
    assert msgspec.json.decode(msgspec.json.encode(back), type=RecordedEvent) == back


async def test_append_at_wrong_version_conflicts_and_writes_nothing(store: EventStore) -> None:
    stream = a_job_stream()
    await store.append(an_append(stream, a_fact("first")))
    for wrong in (0, 2, 7):
        with pytest.raises(VersionConflict) as conflict:
            await store.append(an_append(stream, a_fact("late"), a_fact("later"), expected_version=wrong))
        assert (conflict.value.actual_version, conflict.value.expected_version) == (1, wrong)
    assert facts(await store.read_stream(stream)) == ["first"]
    assert await store.head() == 1


async def test_append_of_several_events_is_contiguous_in_positions_and_versions(store: EventStore) -> None:
    stream = a_job_stream()
    await store.append(an_append(a_job_stream()))
    done = await store.append(an_append(stream, *(a_fact(str(n)) for n in range(5))))
    assert done.last_position - done.first_position == 4
    assert done.version == 5
    back = await store.read_stream(stream)
    assert [event.stream_version for event in back] == [1, 2, 3, 4, 5]
    assert [event.global_position for event in back] == list(range(done.first_position, done.last_position + 1))
    assert facts(back) == ["0", "1", "2", "3", "4"]
    assert facts(await store.read_stream(stream, after_version=3)) == ["3", "4"]


async def test_of_simultaneous_appends_at_one_version_one_wins_whole_and_losers_learn_the_head(
    store: EventStore,
) -> None:
    stream = a_job_stream()
    appends = [store.append(an_append(stream, *(a_fact(f"{n}") for _ in range(n % 3 + 1)))) for n in range(20)]
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    winners = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, VersionConflict)]
    assert len(winners) == 1
    assert len(losers) == 19
    stored = await store.read_stream(stream)
    assert facts(stored) == [str(winners[0])] * (winners[0] % 3 + 1)
    assert {loser.actual_version for loser in losers} == {len(stored)}


async def test_impossible_appends_are_refused_before_they_reach_the_log(store: EventStore) -> None:
    good = an_append(a_job_stream())
    impossible = [
        msgspec.structs.replace(good, events=()),
        msgspec.structs.replace(good, stream="job"),
        msgspec.structs.replace(good, stream="job-with space"),
        msgspec.structs.replace(good, stream="attempt-1"),
        msgspec.structs.replace(good, expected_version=-1),
    ]
    for append in impossible:
        with pytest.raises(ValueError, match=r".+"):
            await store.append(append)
    assert await store.head() == 0


async def test_event_that_would_not_fit_on_the_bus_is_refused(store: EventStore) -> None:
    await store.append(an_append(a_job_stream(), a_fact("x" * (MAX_EVENT_BYTES - 200))))
    with pytest.raises(Rejected) as refused:
        await store.append(an_append(a_job_stream(), a_fact("x" * MAX_EVENT_BYTES)))
    assert refused.value.code == "payload_too_large"
    assert await store.head() == 1


async def test_read_pages_in_position_order_within_bounds(store: EventStore) -> None:
    for n in range(7):
        await store.append(an_append(a_job_stream(), a_fact(str(n))))
    assert facts(await store.read()) == list("0123456")
    assert facts(await store.read(limit=3)) == list("012")
    assert facts(await store.read(after=3, limit=3)) == list("345")
    assert facts(await store.read(after=2, up_to=4)) == list("23")
    assert await store.read(after=7) == []


async def test_read_of_categories_leaves_out_the_others(store: EventStore) -> None:
    for n in range(4):
        await store.append(an_append(a_job_stream(), a_fact(str(n))))
    assert facts(await store.read(categories=["job"])) == list("0123")
    assert facts(await store.read(categories=["attempt", "job", "job"], after=1, limit=2)) == list("12")
    assert await store.read(categories=["account"]) == []


async def test_read_correlated_gives_one_story_over_all_streams(store: EventStore) -> None:
    story = uuid4()
    await store.append(an_append(a_job_stream(), a_fact("a"), correlation_id=story))
    await store.append(an_append(a_job_stream(), a_fact("other")))
    last = await store.append(an_append(a_job_stream(), a_fact("b"), correlation_id=story))
    assert facts(await store.read_correlated(story)) == ["a", "b"]
    assert facts(await store.read_correlated(story, up_to=last.last_position - 1)) == ["a"]


async def test_position_at_finds_the_last_event_of_a_moment(store: EventStore) -> None:
    for n in range(9):
        await store.append(an_append(a_job_stream(), a_fact(str(n))))
    log = await store.read()
    tick = timedelta(microseconds=1)
    assert await store.position_at(log[0].recorded_at - tick) == 0
    assert await store.position_at(log[-1].recorded_at + timedelta(days=1)) == 9
    for event in log:
        same_moment = [other.global_position for other in log if other.recorded_at <= event.recorded_at]
        assert await store.position_at(event.recorded_at) == max(same_moment)


async def test_recorded_times_never_fall(store: EventStore) -> None:
    await asyncio.gather(*(store.append(an_append(a_job_stream())) for _ in range(20)))
    times = [event.recorded_at for event in await store.read()]
    assert times == sorted(times)
    assert times[0].tzinfo is not None


async def test_each_hash_covers_the_event_and_the_one_before_it_in_its_stream(store: EventStore) -> None:
    streams = [a_job_stream(), a_job_stream()]
    for version in (0, 2, 4):
        await asyncio.gather(
            *(store.append(an_append(s, a_fact(), a_fact(), expected_version=version)) for s in streams)
        )
    for stream in streams:
        previous = NO_HASH
        for event in await store.read_stream(stream):
            fields: dict[str, Any] = msgspec.structs.asdict(event) | {
                "data": bytes(event.data),
                "meta": encode_meta(event.meta),
            }
            assert event.hash == event_hash(previous, StoredEvent(**fields))
            previous = event.hash


async def test_listener_wakes_after_a_commit(store: EventStore) -> None:
    async with aclosing(cast("Any", store.listen())) as turns, asyncio.timeout(60):
        await anext(turns)
        seen = 0
        await store.append(an_append(a_job_stream()))
        async for _ in turns:
            seen = await store.head()
            if seen:
                break
    assert seen == 1


async def test_listener_is_woken_every_second_without_commits(store: EventStore) -> None:
    async with aclosing(cast("Any", store.listen())) as turns, asyncio.timeout(60):
        for _ in range(2):
            await anext(turns)
