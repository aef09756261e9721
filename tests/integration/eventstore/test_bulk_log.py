"""What the tests' bulk writer leaves is a log like any other: verified, appended to, sealed."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg

from shared.contracts import catalogue
from shared.eventstore.seals import seal_next
from shared.eventstore.verify import verify
from tests.support import bulk_log
from tests.support.bulk_log import PastEvent
from tests.support.log import LogDatabase, StoreFor, a_fact, a_job_stream, an_append

BEGAN = datetime(2026, 10, 1, 8, tzinfo=UTC)


def a_past(streams: list[str], events: int) -> list[PastEvent]:
    return [
        PastEvent(
            stream=streams[number % len(streams)],
            event=a_fact(f"{number}"),
            correlation_id=uuid4(),
            recorded_at=BEGAN + timedelta(seconds=number),
        )
        for number in range(events)
    ]


async def test_bulk_written_log_verifies_takes_appends_and_is_sealed(
    log_database: LogDatabase, store_for: StoreFor
) -> None:
    streams = [a_job_stream() for _ in range(7)]
    first = await bulk_log.write(log_database.superuser_dsn, a_past(streams, 300))
    assert (first.first_position, first.last_position) == (1, 300)
    store = await store_for("scheduler")
    history = await store.read_stream(streams[0])
    done = await store.append(an_append(streams[0], expected_version=history[-1].stream_version))
    second = await bulk_log.write(log_database.superuser_dsn, a_past([*streams, a_job_stream()], 100))
    assert (done.first_position, second.first_position, second.last_position) == (301, 302, 401)
    relay = await asyncpg.connect(log_database.dsn("relay"))
    assert await seal_next(relay, at_least=1) == 256
    await relay.close()
    report = await verify(log_database.dsn("inspector"))
    assert report.is_intact
    assert (report.events, report.streams, report.head) == (401, 8, 401)


async def test_bulk_written_times_are_those_given_and_never_fall(
    log_database: LogDatabase, store_for: StoreFor
) -> None:
    past = a_past([a_job_stream()], 3)
    await bulk_log.write(log_database.superuser_dsn, [past[1], past[0], past[2]])
    store = await store_for("scheduler")
    events = await store.read()
    assert [event.recorded_at for event in events] == [past[1].recorded_at, past[1].recorded_at, past[2].recorded_at]
    assert [catalogue.decode(event) for event in events] == [past[1].event, past[0].event, past[2].event]
    assert await store.position_at(BEGAN + timedelta(seconds=1)) == 2
