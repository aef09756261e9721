"""Writes a past into a log by the hundred thousand: COPY as superuser, with the hashes `log.append_batch` would make.

For tests and benchmarks that need a long log soon. What it leaves passes `verify`, is sealed and published by the relay
like any other, and can be appended to as usual. The production code has no such way in, on purpose.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

import asyncpg
import msgspec

from shared.contracts import catalogue
from shared.contracts.envelope import EventMetadata
from shared.contracts.job import Event
from shared.eventstore.group_commit import Connection
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash
from shared.eventstore.rows import encode_meta
from shared.ids import new_id

CHUNK = 20_000
_TIMEOUT_S = 600.0
_COLUMNS = StoredEvent.__struct_fields__
_LOCK = "select pg_advisory_xact_lock(7305808869232664)"  # the one of log.append_batch
_LAST = "select global_position, recorded_at from log.events order by global_position desc limit 1"
_HEADS = """
select s.stream, h.stream_version, h.hash from unnest($1::text[]) as s (stream) cross join lateral (
    select e.stream_version, e.hash from log.events e where e.stream = s.stream order by e.stream_version desc limit 1
) as h
"""


class PastEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it shall stand in the log. `recorded_at` is raised to the one before it: a log's times never fall."""

    stream: str
    event: Event
    correlation_id: UUID
    recorded_at: datetime
    actor: str = "system:test"
    event_id: UUID | None = None
    """None: a new one."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """Where the events stand now; `first_position` is 1 in a log that was empty."""

    first_position: int
    last_position: int
    duration_s: float


class _Chain:
    """The end of the log and of each stream, as far as this writer has asked."""

    def __init__(self, position: int, moment: datetime) -> None:
        self.position = position
        self._was_empty = position == 0
        self._moment = moment
        self._heads: dict[str, tuple[int, bytes]] = {}
        self._types: dict[type[Event], str] = {}
        self._metas: dict[str, bytes] = {}

    async def learn(self, connection: Connection, events: Sequence[PastEvent]) -> None:
        """Looks up where the chunk's streams end."""
        unknown = {event.stream for event in events} - self._heads.keys()
        stored = [] if self._was_empty else await connection.fetch(_HEADS, list(unknown), timeout=_TIMEOUT_S)
        self._heads |= dict.fromkeys(unknown, (0, NO_HASH))
        self._heads |= {row["stream"]: (row["stream_version"], row["hash"]) for row in stored}

    def row(self, past: PastEvent) -> tuple[object, ...]:
        """The next row of the log."""
        version, previous = self._heads[past.stream]
        self.position += 1
        self._moment = max(self._moment, past.recorded_at)
        cls = type(past.event)
        row = StoredEvent(
            global_position=self.position,
            event_id=past.event_id or new_id(),
            stream=past.stream,
            stream_version=version + 1,
            type=self._types.get(cls) or self._types.setdefault(cls, catalogue.event_type(cls)),
            data=catalogue.encode(past.event),
            meta=self._meta(past.actor),
            correlation_id=past.correlation_id,
            recorded_at=self._moment,
            hash=NO_HASH,
        )
        hash_ = event_hash(previous, row)
        self._heads[past.stream] = (version + 1, hash_)
        return (*msgspec.structs.astuple(row)[:-1], hash_)

    def _meta(self, actor: str) -> bytes:
        return self._metas.get(actor) or self._metas.setdefault(actor, encode_meta(EventMetadata(actor=actor)))


async def write(superuser_dsn: str, events: Iterable[PastEvent]) -> Written:
    """Adds the events at the end of the log in one transaction, in this order; no other append goes between them.

    `events` may be a generator: CHUNK of them are held at a time. Their times must not lie in the future.
    """
    began = time.monotonic()
    connection = await asyncpg.connect(superuser_dsn, timeout=30)
    try:
        async with connection.transaction():
            await connection.execute(_LOCK, timeout=_TIMEOUT_S)
            last = await connection.fetchrow(_LAST, timeout=_TIMEOUT_S)
            position, moment = (last[0], last[1]) if last else (0, datetime(1970, 1, 1, tzinfo=UTC))
            chain = _Chain(position, moment)
            for chunk in _chunks(events):
                await chain.learn(connection, chunk)
                await _copy(connection, [chain.row(past) for past in chunk])
            await connection.execute("notify log_appended", timeout=_TIMEOUT_S)
        await connection.execute("analyze log.events", timeout=_TIMEOUT_S)
    finally:
        await connection.close(timeout=30)
    return Written(first_position=position + 1, last_position=chain.position, duration_s=time.monotonic() - began)


def _chunks(events: Iterable[PastEvent]) -> Iterator[list[PastEvent]]:
    remaining = iter(events)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


async def _copy(connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
    await connection.copy_records_to_table(
        "events", schema_name="log", columns=_COLUMNS, records=rows, timeout=_TIMEOUT_S
    )
