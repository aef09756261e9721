"""The log in memory: the same answers as Postgres, held to the same contract suite, for tests above it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from shared.clock import Clock, utc_now
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import ANY_POSITION, Append, Appended, VersionConflict
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash
from shared.eventstore.rows import encode, recorded
from shared.ids import new_id

_SAFETY_POLL_S = 1.0


class MemoryEventStore:
    """An EventStore that forgets everything with the process. `clock` says when an event is recorded."""

    def __init__(self, clock: Clock = utc_now, *, safety_poll_s: float = _SAFETY_POLL_S) -> None:
        self._clock = clock
        self._safety_poll_s = safety_poll_s
        self._store_id = new_id()
        self._events: list[RecordedEvent] = []
        self._streams: dict[str, list[RecordedEvent]] = {}
        self._listeners: dict[asyncio.Event, None] = {}  # in the order in which they came

    @property
    def events(self) -> Sequence[RecordedEvent]:
        """Everything, in position order."""
        return self._events

    async def append(self, append: Append) -> Appended:
        """Commits the events, or raises VersionConflict and writes nothing."""
        command = encode(append)
        history = self._streams.setdefault(append.stream, [])
        if len(history) != append.expected_version:
            raise VersionConflict(append.stream, append.expected_version, len(history))
        first = len(self._events) + 1
        moment = max([self._clock(), *(event.recorded_at for event in self._events[-1:])])
        for event in command.events:
            row = StoredEvent(
                global_position=len(self._events) + 1,
                event_id=event.event_id,
                stream=append.stream,
                stream_version=len(history) + 1,
                type=event.type,
                data=event.data,
                meta=command.meta,
                correlation_id=append.correlation_id,
                recorded_at=moment,
                hash=NO_HASH,
            )
            chained = msgspec.structs.replace(row, hash=event_hash(history[-1].hash if history else NO_HASH, row))
            history.append(recorded(msgspec.structs.asdict(chained)))
            self._events.append(history[-1])
        for woken in self._listeners:
            woken.set()
        return Appended(first_position=first, last_position=len(self._events), version=len(history))

    async def read_stream(self, stream: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """The stream's events in version order."""
        return self._streams.get(stream, [])[after_version:]

    async def read(
        self, *, after: int = 0, up_to: int = ANY_POSITION, categories: Sequence[str] = (), limit: int = 1000
    ) -> list[RecordedEvent]:
        """At most `limit` events with `after < position <= up_to`, in position order; no categories means all."""
        wanted = [event for event in self._events[after:up_to] if not categories or event.category in categories]
        return wanted[:limit]

    async def read_correlated(self, correlation_id: UUID, *, up_to: int = ANY_POSITION) -> list[RecordedEvent]:
        """Every event of one story, in position order."""
        return [event for event in self._events[:up_to] if event.correlation_id == correlation_id]

    async def head(self) -> int:
        """The highest position, 0 in an empty log."""
        return len(self._events)

    async def position_at(self, moment: datetime) -> int:
        """The highest position recorded at or before `moment`, 0 if there is none."""
        return sum(event.recorded_at <= moment for event in self._events)

    async def store_id(self) -> UUID:
        """The identity of this log; another one has another."""
        return self._store_id

    async def listen(self) -> AsyncGenerator[None]:
        """Yields at once, after each append, and at least every `safety_poll_s`."""
        woken = asyncio.Event()
        self._listeners[woken] = None
        try:
            while True:
                woken.clear()
                yield
                try:
                    async with asyncio.timeout(self._safety_poll_s):
                        await woken.wait()
                except TimeoutError:
                    continue
        finally:
            del self._listeners[woken]
