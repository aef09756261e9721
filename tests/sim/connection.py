# ruff: noqa: ASYNC109, ARG002 - the signatures are asyncpg's
"""asyncpg's pool and connection over the database in memory: the calls that services make, and how they fail."""

from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self

import asyncpg

from shared.contracts import catalogue
from shared.contracts.job import Event
from tests.sim.database import Database, Row, Transaction, Twin
from tests.sim.process import Process
from tests.sim.twins import TWINS

CUT = "cut before it ran"
LOST = "cut after it ran"
STATEMENT_FAULTS = (CUT, LOST)
UNAVAILABLE = "unavailable"


def type_of(event: Event) -> str:
    """The stored name of an event."""
    return catalogue.event_type(type(event))


def gone(what: str) -> asyncpg.ConnectionDoesNotExistError:
    """The error of a session that broke while it was used."""
    return asyncpg.ConnectionDoesNotExistError(f"connection was closed in the middle of operation: {what}")


class MemoryConnection:
    """One session. A cut closes it: what was not committed is rolled back, its session locks are free."""

    def __init__(self, database: Database, process: Process) -> None:
        self.database = database
        self.process = process
        self.open: Transaction | None = None
        self._closed = False
        self._listeners: list[Any] = []
        process.at_death.append(self.terminate)
        database.connections[self.terminate] = None

    def is_closed(self) -> bool:
        """Whether it was closed, by us or by a fault."""
        return self._closed

    def terminate(self) -> None:
        """Ends the session at once."""
        if self._closed:
            return
        self._closed = True
        self.database.connections.pop(self.terminate, None)
        if self.open is not None:
            self.open.rollback()
            self.open = None
        for key, holder in list(self.database.sessions.items()):
            if holder is self:
                del self.database.sessions[key]
        for listener in self._listeners:
            self.database.listeners.pop(listener, None)
        if self.terminate in self.process.at_death:
            self.process.at_death.remove(self.terminate)

    async def close(self, *, timeout: float | None = None) -> None:
        """The same, politely."""
        self.terminate()

    async def add_listener(self, channel: str, callback: Any) -> None:
        """LISTEN: called soon after each commit of events."""
        self._listeners.append(callback)
        self.database.listeners[callback] = None

    async def remove_listener(self, channel: str, callback: Any) -> None:
        """UNLISTEN."""
        self.database.listeners.pop(callback, None)

    def transaction(self) -> "MemoryTransaction":
        """A transaction block on this connection."""
        return MemoryTransaction(self)

    async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
        """Runs a statement."""
        await self._run(query, [arguments])
        return "OK"

    async def executemany(
        self, query: str, arguments: Iterable[tuple[Any, ...]], *, timeout: float | None = None
    ) -> None:
        """Runs a statement for each row of arguments, all or none."""
        await self._run(query, list(arguments))

    async def fetch(self, query: str, *arguments: Any, timeout: float | None = None) -> list[Row]:
        """Every row."""
        return await self._run(query, [arguments])

    async def fetchrow(self, query: str, *arguments: Any, timeout: float | None = None) -> Row | None:
        """The first row."""
        rows = await self._run(query, [arguments])
        return rows[0] if rows else None

    async def fetchval(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        """The first row's first column."""
        rows = await self._run(query, [arguments])
        return next(iter(rows[0].values())) if rows else None

    async def _run(self, query: str, calls: list[tuple[Any, ...]]) -> list[Row]:
        found = TWINS.get(query)
        if found is None:
            raise AssertionError(f"the simulation has no twin of this query; see tests/sim/queries_*.py:\n{query}")
        place, twin = found
        if self._closed:
            raise asyncpg.InterfaceError("connection is closed")
        await self.process.chaos.latency()
        fault = await self.process.step(place, STATEMENT_FAULTS)
        if fault == CUT:
            self.terminate()
        if self._closed:
            raise gone(place)
        transaction = self.open or Transaction(self.database, self.process.service, self)
        try:
            rows = await _answer(transaction, twin, calls)
        except BaseException:
            if transaction is not self.open:
                transaction.rollback()
            raise
        if self._closed:
            transaction.rollback()
            raise gone(place)
        if transaction is not self.open:
            transaction.commit()
        if fault == LOST:
            self.terminate()
            raise gone(place)
        await self.process.hold()
        return rows


async def _answer(transaction: Transaction, twin: Twin, calls: list[tuple[Any, ...]]) -> list[Row]:
    """What the last of the calls gives."""
    rows: list[Row] = []
    for arguments in calls:
        given = twin(transaction, *arguments)
        rows = (given if given is None or isinstance(given, list) else await given) or []
    return rows


class MemoryTransaction:
    """`async with connection.transaction()`, or start and rollback by hand. Blocks inside a block share its fate."""

    def __init__(self, connection: MemoryConnection) -> None:
        self._connection = connection
        self._outer = False

    async def start(self) -> None:
        """BEGIN; the first statement's round trip, so no place of its own."""
        if self._connection.is_closed():
            raise asyncpg.InterfaceError("connection is closed")
        self._outer = self._connection.open is None
        if self._outer:
            process = self._connection.process
            self._connection.open = Transaction(self._connection.database, process.service, self._connection)

    async def commit(self) -> None:
        """COMMIT: the answer may be lost although it was done."""
        connection, process = self._connection, self._connection.process
        if not self._outer:
            return
        place = f"commit:{process.service}"
        fault = await process.step(place, STATEMENT_FAULTS)
        if connection.is_closed() or connection.open is None:
            raise gone(place)
        if fault == CUT:
            connection.terminate()
            raise gone(place)
        appended = [type_of(event) for append in connection.open.appends for event in append.events]
        connection.open.commit()
        connection.open = None
        if fault == LOST:
            connection.terminate()
            raise gone(place)
        for type_ in appended:
            if await process.step(f"appended:{type_}", (UNAVAILABLE,)) == UNAVAILABLE:
                connection.terminate()
                raise gone(place)
        await process.hold()

    async def rollback(self) -> None:
        """ROLLBACK; a closed connection has done it already."""
        if self._outer and self._connection.open is not None:
            self._connection.open.rollback()
            self._connection.open = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.commit()
        else:
            await self.rollback()


class _Acquiring:
    """`pool.acquire()`: to be awaited, or entered."""

    def __init__(self, pool: "MemoryPool") -> None:
        self._pool = pool
        self._connection: MemoryConnection | None = None

    def __await__(self) -> Generator[Any, Any, MemoryConnection]:
        return self._pool.connect().__await__()

    async def __aenter__(self) -> MemoryConnection:
        self._connection = await self._pool.connect()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.terminate()


class MemoryPool:
    """A process's pool: each acquire is a connection of its own."""

    def __init__(self, database: Database, process: Process) -> None:
        self.database = database
        self._process = process

    async def connect(self) -> MemoryConnection:
        """A new session."""
        await self._process.hold()
        if self.database.is_away:
            raise ConnectionRefusedError
        return MemoryConnection(self.database, self._process)

    def acquire(self, *, timeout: float | None = None) -> _Acquiring:
        """A connection for a while."""
        return _Acquiring(self)

    async def release(self, connection: MemoryConnection, *, timeout: float | None = None) -> None:
        """Gives it back."""
        connection.terminate()

    @asynccontextmanager
    async def _borrowed(self) -> AsyncGenerator[MemoryConnection]:
        connection = await self.connect()
        try:
            yield connection
        finally:
            connection.terminate()

    async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
        """Runs a statement in a transaction of its own."""
        async with self._borrowed() as connection:
            return await connection.execute(query, *arguments)

    async def fetch(self, query: str, *arguments: Any, timeout: float | None = None) -> list[Row]:
        """Every row."""
        async with self._borrowed() as connection:
            return await connection.fetch(query, *arguments)

    async def fetchrow(self, query: str, *arguments: Any, timeout: float | None = None) -> Row | None:
        """The first row."""
        async with self._borrowed() as connection:
            return await connection.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        """The first row's first column."""
        async with self._borrowed() as connection:
            return await connection.fetchval(query, *arguments)
