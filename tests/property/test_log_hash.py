"""The hash that SQL writes is the hash that Python recomputes, whatever the payload."""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.eventstore.api import Appended
from shared.eventstore.group_commit import append_batch
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import Encoded, NewEvent, stored
from tests.support.log import LogDatabase

NEW_EVENTS = st.builds(
    NewEvent,
    event_id=st.uuids(version=4).map(lambda _: uuid4()),
    type=st.from_regex(r"job\.[a-z_]{1,40}\.v[0-9]{1,3}", fullmatch=True),
    data=st.binary(max_size=3000),
)


def a_command(events: list[NewEvent], meta: bytes, correlation_id: UUID, name: str) -> Encoded:
    stream = f"job-{name}-{uuid4()}"
    return Encoded(
        stream=stream, expected_version=0, correlation_id=correlation_id, meta=meta, events=tuple(events), size_bytes=0
    )


def _one_more(command: Encoded) -> Encoded:
    """The first event's bytes again, as the stream's next event."""
    again = NewEvent(uuid4(), command.events[0].type, command.events[0].data)
    return msgspec.structs.replace(command, expected_version=len(command.events), events=(again,))


COMMANDS = st.builds(
    a_command,
    st.lists(NEW_EVENTS, min_size=1, max_size=5),
    st.binary(max_size=200),
    st.uuids(),
    st.from_regex(r"[A-Za-z0-9_-]{0,30}", fullmatch=True),
)


@pytest.mark.timeout(300)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(commands=st.lists(COMMANDS, min_size=1, max_size=6))
async def test_sql_and_python_compute_the_same_hash(commands: list[Encoded], log_database: LogDatabase) -> None:
    connection = await asyncpg.connect(log_database.dsn("scheduler"))
    try:
        outcomes = await append_batch(connection, commands)
        assert all(isinstance(outcome, Appended) for outcome in outcomes)
        for outcome in await append_batch(connection, [_one_more(command) for command in commands]):
            assert isinstance(outcome, Appended), "a batch of single events has a statement of its own"
        for command in commands:
            previous = NO_HASH
            count = 0
            for row in await connection.fetch(QUERIES.read_stream, command.stream, 0):
                assert row["hash"] == event_hash(previous, stored(row))
                previous = row["hash"]
                count += 1
            assert count == len(command.events) + 1
    finally:
        await connection.close()


STORED_EVENTS = st.builds(
    StoredEvent,
    global_position=st.integers(1, 2**62),
    event_id=st.uuids(),
    stream=st.text(max_size=20),
    stream_version=st.integers(1, 2**31 - 1),
    type=st.text(max_size=20),
    data=st.binary(max_size=20),
    meta=st.binary(max_size=20),
    correlation_id=st.uuids(),
    recorded_at=st.datetimes(timezones=st.timezones()),
    hash=st.just(b""),
)


@given(one=STORED_EVENTS, other=STORED_EVENTS, previous=st.sampled_from([NO_HASH, b"h" * 32]))
def test_events_that_differ_in_anything_have_different_hashes(
    one: StoredEvent, other: StoredEvent, previous: bytes
) -> None:
    assert (event_hash(previous, one) == event_hash(previous, other)) == (one == other)


@given(event=STORED_EVENTS, moved=st.integers(1, 19))
def test_bytes_do_not_move_between_neighbouring_fields(event: StoredEvent, moved: int) -> None:
    def shifted(first: bytes, second: bytes) -> Any:
        return {"data": first, "meta": second}

    joined = event.data + event.meta
    here = StoredEvent(**{**_fields(event), **shifted(joined, b"")})
    there = StoredEvent(**{**_fields(event), **shifted(joined[:moved], joined[moved:])})
    assert (event_hash(NO_HASH, here) == event_hash(NO_HASH, there)) == (here == there)


def _fields(event: StoredEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}
