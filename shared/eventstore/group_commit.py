"""Many callers, one commit: the appends that wait together are written by one call of `log.append_batch`.

Used by `postgres.py` only. One connection at a time; a bounded queue, so callers wait when Postgres is slower than
they are.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from shared.eventstore.api import Appended, VersionConflict
from shared.eventstore.outages import OUTAGES
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import Encoded
from shared.problems import Unavailable

MAX_COMMANDS = 512
MAX_BATCH_BYTES = 8 * 1024**2
QUEUE_COMMANDS = 4096
COMMIT_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 10.0
LINGER_S = 0.05
"""How long the connection is kept when nothing waits: a steady trickle need not fetch it anew each time."""

log = structlog.stdlib.get_logger()

Outcome = Appended | VersionConflict
Connection = asyncpg.Connection | PoolConnectionProxy


async def append_batch(connection: Connection, batch: Sequence[Encoded]) -> list[Outcome]:
    """Appends each command whose stream is where it expects it; the others get their VersionConflict, in order."""
    events = [event for command in batch for event in command.events]
    rows = await connection.fetch(
        QUERIES.append_batch,
        [command.stream for command in batch],
        [command.expected_version for command in batch],
        [command.correlation_id for command in batch],
        [len(command.events) for command in batch],
        [event.event_id for event in events],
        [event.type for event in events],
        [event.data for event in events],
        [command.meta for command in batch for _ in command.events],
        timeout=COMMIT_TIMEOUT_S,
    )
    return [_outcome(command, row) for command, row in zip(batch, rows, strict=True)]


def _outcome(command: Encoded, row: asyncpg.Record) -> Outcome:
    if row["first_position"] is None:
        return VersionConflict(command.stream, command.expected_version, row["version"])
    return Appended(first_position=row["first_position"], last_position=row["last_position"], version=row["version"])


Write = Callable[[Connection, Sequence[Encoded]], Awaitable[list[Outcome]]]
"""Commits a batch in one round trip: one outcome for each command, in order."""


class _Waiting:
    """A command and the caller who waits for its outcome."""

    __slots__ = ("command", "outcome")

    def __init__(self, command: Encoded) -> None:
        self.command = command
        self.outcome: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()

    def succeed(self, outcome: Outcome) -> None:
        if isinstance(outcome, VersionConflict):
            self.fail(outcome)
        elif not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class GroupCommit:
    """Takes commands from any number of tasks and commits those that wait together.

    A caller that is cancelled before its batch starts writes nothing; later its outcome is unknown to it. Neither
    touches the others.
    """

    def __init__(self, pool: asyncpg.Pool, *, write: Write = append_batch) -> None:
        self._pool = pool
        self._write = write
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(QUEUE_COMMANDS)
        self._flusher: asyncio.Task[None] | None = None

    async def commit(self, command: Encoded) -> Appended:
        """The command's outcome after its commit; Unavailable when nobody knows whether it was committed."""
        waiting = _Waiting(command)
        await self._queue.put(waiting)
        if self._flusher is None or self._flusher.done():
            # Not in a TaskGroup: the flusher serves callers of many scopes and must outlive a cancelled one. It ends by
            # itself when nothing waits, and every error goes to the callers of the batch it belongs to.
            self._flusher = asyncio.get_running_loop().create_task(self._flush(), name="group-commit")
        return await waiting.outcome

    async def close(self) -> None:
        """Returns when everything that waited has its outcome."""
        if self._flusher is not None:
            await self._flusher

    async def _flush(self) -> None:
        while not self._queue.empty():
            try:
                async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                    await self._serve(connection)
            except OUTAGES as error:
                self._refuse_waiting(error)

    async def _serve(self, connection: Connection) -> None:
        """Commits batches until nothing waits, or the connection is of no more use."""
        while batch := await self._next_batch():
            try:
                await self._commit_batch(connection, batch)
            except OUTAGES as error:
                log.warning("eventstore.append.outcome_unknown", error=repr(error))
                for waiting in batch:
                    waiting.fail(_unavailable("it may or may not have been committed", error))
                return

    async def _next_batch(self) -> list[_Waiting]:
        """What waits, up to the limits; empty when nothing came for LINGER_S."""
        batch: list[_Waiting] = []
        size = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while not batch:
                    _take(await self._queue.get(), batch)
        except TimeoutError:
            return batch
        while len(batch) < MAX_COMMANDS and size < MAX_BATCH_BYTES and not self._queue.empty():
            size += _take(self._queue.get_nowait(), batch)
        return batch

    async def _commit_batch(self, connection: Connection, batch: list[_Waiting]) -> None:
        try:
            outcomes = await self._write(connection, [waiting.command for waiting in batch])
        except OUTAGES:
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to one caller, and is raised there
            await self._find_culprit(connection, batch, error)
            return
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.succeed(outcome)

    async def _find_culprit(self, connection: Connection, batch: list[_Waiting], error: Exception) -> None:
        """One command spoilt the batch, which wrote nothing: alone, each gets the error that is its own."""
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for waiting in batch:
            await self._commit_batch(connection, [waiting])

    def _refuse_waiting(self, error: Exception) -> None:
        log.warning("eventstore.append.unavailable", error=repr(error))
        while not self._queue.empty():
            self._queue.get_nowait().fail(_unavailable("nothing was written", error))


def _take(waiting: _Waiting, batch: list[_Waiting]) -> int:
    """Adds a command to the batch unless its caller has gone; the bytes it brings."""
    if waiting.outcome.done():
        return 0
    batch.append(waiting)
    return waiting.command.size_bytes


def _unavailable(consequence: str, cause: Exception) -> Unavailable:
    error = Unavailable(f"the log did not answer: {consequence}")
    error.__cause__ = cause
    return error
