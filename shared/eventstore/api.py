"""What a log is, whoever keeps it. The Postgres log and its in-memory twin pass the same contract suite."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import Event

ANY_POSITION = 2**62
"""Larger than any position: `up_to` for "whatever is there"."""


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Events to add to one stream, all or none, if its version is still `expected_version` (0 = it does not exist)."""

    stream: str
    expected_version: int
    events: Sequence[Event]
    meta: EventMetadata
    correlation_id: UUID


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """Committed: the events have the contiguous positions `first_position`..`last_position`."""

    first_position: int
    last_position: int
    version: int


class VersionConflict(Exception):  # noqa: N818 - an outcome of a race, not an error
    """The stream moved: nothing was written. Load, decide again, append again."""

    def __init__(self, stream: str, expected_version: int, actual_version: int) -> None:
        super().__init__(f"{stream} is at version {actual_version}, not {expected_version}")
        self.stream = stream
        self.expected_version = expected_version
        self.actual_version = actual_version


class EventStore(Protocol):
    """Ordered, append-only, optimistic. Commit order is position order: a reader by position misses nothing."""

    async def append(self, append: Append) -> Appended:
        """Commits the events, or raises VersionConflict and writes nothing."""
        ...

    async def read_stream(self, stream: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """The stream's events in version order."""
        ...

    async def read(
        self, *, after: int = 0, up_to: int = ANY_POSITION, categories: Sequence[str] = (), limit: int = 1000
    ) -> list[RecordedEvent]:
        """At most `limit` events with `after < position <= up_to`, in position order; no categories means all."""
        ...

    async def read_correlated(self, correlation_id: UUID, *, up_to: int = ANY_POSITION) -> list[RecordedEvent]:
        """Every event of one story (a job and all that happened because of it), in position order."""
        ...

    async def head(self) -> int:
        """The highest committed position, 0 in an empty log."""
        ...

    async def position_at(self, moment: datetime) -> int:
        """The highest position recorded at or before `moment`, 0 if there is none."""
        ...

    async def store_id(self) -> UUID:
        """The identity of this log; one made anew has another."""
        ...

    def listen(self) -> AsyncIterator[None]:
        """Yields after each batch of commits (and at least every second): a hint to read on."""
        ...
