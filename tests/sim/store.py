"""The log as one process sees it: the in-memory store behind a connection that fails, with spurious conflicts."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import JobWaitExplained
from shared.eventstore.api import ANY_POSITION, Append, Appended, VersionConflict
from shared.eventstore.group_commit import Connection, Outcome
from shared.problems import Unavailable
from tests.sim.connection import UNAVAILABLE, MemoryConnection, gone
from tests.sim.database import APPEND_LOCK, Database, Transaction, at_once
from tests.sim.process import Process

CONFLICT = "conflict"
_MAX_CONFLICTS = 3
"""In a row, of those that are made up: deciders try again a bounded number of times."""


class SimStore:
    """A TransactionalStore of one process over the common log."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._log = database.log
        self._process = process
        self._conflicts = 0

    async def append(self, append: Append) -> Appended:
        """Commits the events, or raises VersionConflict, or Unavailable before or after the commit."""
        tag = self._tag(append)
        await self._process.chaos.latency()
        fault = await self._process.step(f"append:{tag}", (UNAVAILABLE, CONFLICT))
        if fault == UNAVAILABLE or self._database.is_away:
            raise Unavailable("the log does not answer: nothing was written")
        if fault == CONFLICT:
            self._refuse(append)
        transaction = Transaction(self._database, self._process.service, self)
        try:
            [outcome] = await self._append(transaction, [append])
        except BaseException:
            transaction.rollback()
            raise
        if isinstance(outcome, VersionConflict):
            transaction.rollback()
            raise outcome
        transaction.commit()
        if await self._process.step(f"appended:{tag}", (UNAVAILABLE,)) == UNAVAILABLE:
            raise Unavailable("the log does not answer: it may or may not have been committed")
        return outcome

    def _refuse(self, append: Append) -> None:
        self._conflicts += 1
        if self._conflicts % (_MAX_CONFLICTS + 1):
            raise _moved(append)

    async def append_in(self, connection: Connection, appends: Sequence[Append]) -> list[Outcome]:
        """Appends in the connection's open transaction; visible when it commits."""
        session = cast("MemoryConnection", cast("Any", connection))  # what our own pool gave out
        if not appends:
            return []
        await self._process.chaos.latency()
        refused: set[int] = set()
        for number, append in enumerate(appends):
            fault = await self._process.step(f"append:{self._tag(append)}", (UNAVAILABLE, CONFLICT))
            if fault == UNAVAILABLE:
                session.terminate()
                raise gone("append")
            if fault == CONFLICT and not _is_wait(append):
                refused.add(number)
        if session.open is None:
            raise gone("append")
        wanted = [append for number, append in enumerate(appends) if number not in refused]
        outcomes = iter(await self._append(session.open, wanted))
        return [_moved(append) if number in refused else next(outcomes) for number, append in enumerate(appends)]

    async def _append(self, transaction: Transaction, appends: Sequence[Append]) -> list[Outcome]:
        await self._database.locks.take(APPEND_LOCK, transaction)
        position = at_once(self._log.head()) + sum(len(append.events) for append in transaction.appends)
        outcomes: list[Outcome] = []
        for append in appends:
            pending = sum(len(one.events) for one in transaction.appends if one.stream == append.stream)
            version = len(at_once(self._log.read_stream(append.stream))) + pending
            if version != append.expected_version:
                outcomes.append(VersionConflict(append.stream, append.expected_version, version))
                continue
            transaction.appends.append(append)
            count = len(append.events)
            outcomes.append(
                Appended(first_position=position + 1, last_position=position + count, version=version + count)
            )
            position += count
        return outcomes

    async def read_stream(self, stream: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """The stream's events in version order."""
        await self._look()
        return await self._log.read_stream(stream, after_version=after_version)

    async def read(
        self, *, after: int = 0, up_to: int = ANY_POSITION, categories: Sequence[str] = (), limit: int = 1000
    ) -> list[RecordedEvent]:
        """A page of the log."""
        await self._look()
        return await self._log.read(after=after, up_to=up_to, categories=categories, limit=limit)

    async def read_correlated(self, correlation_id: UUID, *, up_to: int = ANY_POSITION) -> list[RecordedEvent]:
        """Every event of one story."""
        await self._look()
        return await self._log.read_correlated(correlation_id, up_to=up_to)

    async def head(self) -> int:
        """The highest committed position."""
        await self._look()
        return await self._log.head()

    async def position_at(self, moment: datetime) -> int:
        """The highest position recorded at or before a moment."""
        await self._look()
        return await self._log.position_at(moment)

    async def store_id(self) -> UUID:
        """The log's identity."""
        await self._look()
        return await self._log.store_id()

    def listen(self) -> AsyncGenerator[None]:
        """Yields after each append: a hint."""
        return self._log.listen()

    def _tag(self, append: Append) -> str:
        """The type of one of its events: whatever strikes, strikes the append."""
        events = append.events
        event = events[0] if len(events) == 1 else self._process.chaos.random.choice(events)
        return catalogue.event_type(type(event))

    async def _look(self) -> None:
        await self._process.chaos.latency()
        if await self._process.step("read:log", (UNAVAILABLE,)) == UNAVAILABLE or self._database.is_away:
            raise Unavailable("the log does not answer (read)")


def _is_wait(append: Append) -> bool:
    """Whether a conflict may not be made up: what-if tells a wait that lost a race by the winner's event before it.

    A real conflict always has one. A round whose dispatch meets a conflict writes nothing, so there it may be made up.
    """
    return all(isinstance(event, JobWaitExplained) for event in append.events)


def _moved(append: Append) -> VersionConflict:
    return VersionConflict(append.stream, append.expected_version, append.expected_version + 1)
