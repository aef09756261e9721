"""The log in Postgres. Appends go through `log.append_batch` alone; readers page by position and miss nothing."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import ANY_POSITION, Append, Appended
from shared.eventstore.group_commit import Connection, GroupCommit, Outcome, append_batch
from shared.eventstore.outages import unavailable_on_outage
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import encode, recorded
from shared.eventstore.wakeups import Wakeups

READ_TIMEOUT_S = 30.0
_POOL_CONNECTIONS = 10


class PostgresEventStore:
    """An EventStore on a pool of the caller's, who closes the store first and the pool then.

    Errors: VersionConflict; Unavailable when Postgres is away (an append may then have been committed or not: load and
    decide again); ValueError for an append no log could take; asyncpg.InsufficientPrivilegeError for a category that
    belongs to another role. Each append() takes part in a group commit; all its connections come from the pool, at
    most one for appends and one for all listeners.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._group = GroupCommit(pool)
        self._wakeups = Wakeups(pool)

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, connections: int = _POOL_CONNECTIONS) -> AsyncGenerator["PostgresEventStore"]:
        """A store with a pool of its own, both closed at the end."""
        async with asyncpg.create_pool(dsn, min_size=1, max_size=connections) as pool:
            store = cls(pool)
            try:
                yield store
            finally:
                await store.close()

    async def close(self) -> None:
        """Returns when every append that was asked for has its answer."""
        await self._group.close()

    async def append(self, append: Append) -> Appended:
        """Commits the events, or raises VersionConflict and writes nothing."""
        return await self._group.commit(encode(append))

    async def append_in(self, connection: Connection, appends: Sequence[Append]) -> list[Outcome]:
        """Appends inside the caller's open transaction (read committed); one outcome for each, in order.

        A VersionConflict is returned, not raised: the caller decides whether to roll back. Every other append of every
        service waits until the transaction ends, so make this its last statement but one.
        """
        if not appends:
            return []
        return await append_batch(connection, [encode(append) for append in appends])

    async def read_stream(self, stream: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """The stream's events in version order."""
        return await self._read(QUERIES.read_stream, stream, after_version)

    async def read(
        self, *, after: int = 0, up_to: int = ANY_POSITION, categories: Sequence[str] = (), limit: int = 1000
    ) -> list[RecordedEvent]:
        """At most `limit` events with `after < position <= up_to`, in position order; no categories means all."""
        if categories:
            return await self._read(QUERIES.read_categories, after, up_to, limit, list(set(categories)))
        return await self._read(QUERIES.read_all, after, up_to, limit)

    async def read_correlated(self, correlation_id: UUID, *, up_to: int = ANY_POSITION) -> list[RecordedEvent]:
        """Every event of one story, in position order."""
        return await self._read(QUERIES.read_correlated, correlation_id, up_to)

    async def head(self) -> int:
        """The highest committed position, 0 in an empty log."""
        return await self._value(QUERIES.head)

    async def position_at(self, moment: datetime) -> int:
        """The highest position recorded at or before `moment`, 0 if there is none."""
        return await self._value(QUERIES.position_at, moment)

    async def store_id(self) -> UUID:
        """The identity of this log; a database made anew has another one."""
        return UUID(int=(await self._value(QUERIES.store_id)).int)

    def listen(self) -> AsyncGenerator[None]:
        """Yields at once, after each batch of commits, and at least every second: a hint to read on."""
        return self._wakeups.listen()

    async def _read(self, query: str, *arguments: object) -> list[RecordedEvent]:
        with unavailable_on_outage("read"):
            async with asyncio.timeout(READ_TIMEOUT_S):  # the wait for a free connection too
                rows = await self._pool.fetch(query, *arguments)
        return [recorded(row) for row in rows]

    async def _value(self, query: str, *arguments: object) -> Any:
        with unavailable_on_outage("read"):
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await self._pool.fetchval(query, *arguments)
