"""The log machine's backend without servers: a log, a stream that refuses and recognises, one service's tables."""

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from shared.eventstore.acks import PubAck, PubError
from shared.eventstore.api import EventStore
from shared.eventstore.memory import MemoryEventStore
from shared.eventstore.publisher import EXPECTED_SEQUENCE
from shared.eventstore.queries import QUERIES as LOG
from shared.eventstore.topology import EVENT_ID, MESSAGE_ID, POSITION, StreamEnd
from shared.messaging.inbox import QUERIES as INBOX
from tests.support.log_machine import ADD_TO_FOLD, FOLDS, READ_FOLDS, Delivered, Publishing

Rows = list[dict[str, Any]]
Tables = dict[str, dict[Any, dict[str, Any]]]


class MemoryStream:
    """JetStream's stream of events: a message that states another sequence than the stream's is refused."""

    def __init__(self) -> None:
        self.messages: list[Delivered] = []
        self._known: dict[str, int] = {}

    async def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> asyncio.Future[PubAck]:
        """Takes, recognises or refuses a message."""
        answer: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        answer.set_result(self._answer(subject, payload, headers))
        return answer

    def _answer(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        known = self._known.get(headers[MESSAGE_ID])
        if known is not None:
            return PubAck(seq=known, duplicate=True)
        if int(headers[EXPECTED_SEQUENCE]) != len(self.messages):
            return PubAck(error=PubError(err_code=10071, description="wrong last sequence"))
        self.messages.append(Delivered(subject, headers, payload))
        self._known[headers[MESSAGE_ID]] = len(self.messages)
        return PubAck(seq=len(self.messages))

    def end(self) -> StreamEnd:
        """Where it ends."""
        if not self.messages:
            return StreamEnd()
        last = self.messages[-1].headers
        return StreamEnd(sequence=len(self.messages), position=int(last[POSITION]), event_id=UUID(last[EVENT_ID]))


class MemoryTables:
    """One service's committed rows by table and key, and who holds which durable's lock."""

    def __init__(self) -> None:
        self.rows: Tables = {"inbox": {}, "checkpoint": {}, "parked": {}, FOLDS: {}}
        self.locks: dict[str, MemorySession] = {}


class MemorySession:
    """A connection: each statement is the twin of one named query; what is not committed is gone with it."""

    def __init__(self, tables: MemoryTables, store: MemoryEventStore) -> None:
        self._shared = tables
        self._store = store
        self._own: Tables | None = None
        self._closed = False
        self._twins: Mapping[str, Callable[..., Rows]] = {
            LOG.previous_in_category: self._previous,
            INBOX.try_lock: self._try_lock,
            INBOX.ensure_checkpoint: self._ensure_checkpoint,
            INBOX.read_checkpoint: self._read_checkpoint,
            INBOX.lock_checkpoint: self._read_checkpoint,
            INBOX.raise_checkpoint: self._raise_checkpoint,
            INBOX.claim_events: self._claim,
            INBOX.already_handled: self._already_handled,
            INBOX.park_event: self._park,
            INBOX.parked_positions: self._parked_positions,
            INBOX.has_parked: lambda *key: [{"bool": True}] if key in self._rows["parked"] else [],
            INBOX.take_parked: self._take_parked,
            INBOX.table_clear: self._clear,
            ADD_TO_FOLD: self._add_to_fold,
            READ_FOLDS: lambda: self._sorted(FOLDS),
        }

    @property
    def _rows(self) -> Tables:
        return self._shared.rows if self._own is None else self._own

    # ---- asyncpg's calls ---------------------------------------------------------------------------------------------

    def is_closed(self) -> bool:
        """Whether the session is over."""
        return self._closed

    def terminate(self) -> None:
        """Ends the session: its transaction is rolled back and its locks are free."""
        self._closed, self._own = True, None
        for name in [name for name, holder in self._shared.locks.items() if holder is self]:
            del self._shared.locks[name]

    async def close(self, *, timeout: float = 0) -> None:  # noqa: ASYNC109, ARG002 - asyncpg's name
        """The same."""
        self.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """All of it or nothing."""
        self._own = copy.deepcopy(self._shared.rows)
        try:
            yield
            if self._closed:
                raise ConnectionResetError("the session is over")
            self._shared.rows = self._own
        finally:
            self._own = None

    async def fetch(self, query: str, *arguments: Any, timeout: float = 0) -> Rows:  # noqa: ASYNC109, ARG002
        """The rows of a query."""
        if self._closed:
            raise ConnectionResetError("the session is over")
        return self._twins[query](*arguments)

    async def execute(self, query: str, *arguments: Any, timeout: float = 0) -> None:  # noqa: ASYNC109
        """A query for its effect."""
        await self.fetch(query, *arguments, timeout=timeout)

    async def fetchval(self, query: str, *arguments: Any, timeout: float = 0) -> Any:  # noqa: ASYNC109
        """The first value of a query, None if there is no row."""
        rows = await self.fetch(query, *arguments, timeout=timeout)
        return next(iter(rows[0].values())) if rows else None

    async def cursor(self, _query: str, table: str, **_options: Any) -> AsyncIterator[dict[str, str]]:
        """`table_lines`."""
        for row in self._sorted(table):
            yield {"line": str(row)}

    # ---- twins -------------------------------------------------------------------------------------------------------

    def _sorted(self, table: str) -> Rows:
        return [row for _, row in sorted(self._rows[table].items())]

    def _previous(self, category: str, position: int) -> Rows:
        before = [event.global_position for event in self._store.events if event.category == category]
        return [{"max": max((one for one in before if one < position), default=0)}]

    def _try_lock(self, durable: str) -> Rows:
        return [{"locked": self._shared.locks.setdefault(durable, self) is self}]

    def _ensure_checkpoint(self, durable: str) -> Rows:
        self._rows["checkpoint"].setdefault(durable, {"position": 0})
        return []

    def _read_checkpoint(self, durable: str) -> Rows:
        row = self._rows["checkpoint"].get(durable)
        return [dict(row)] if row else []

    def _raise_checkpoint(self, durable: str, position: int) -> Rows:
        row = self._rows["checkpoint"][durable]
        row["position"] = max(row["position"], position)
        return []

    def _claim(self, durable: str, ids: Sequence[UUID], positions: Sequence[int]) -> Rows:
        self._raise_checkpoint(durable, max(positions))
        inbox = self._rows["inbox"]
        new = [one for one in dict.fromkeys(ids) if (durable, one) not in inbox]
        inbox.update({(durable, one): {"event_id": one} for one in new})
        return [{"event_id": one} for one in new]

    def _already_handled(self, durable: str, ids: Sequence[UUID]) -> Rows:
        return [{"event_id": one} for one in ids if (durable, one) in self._rows["inbox"]]

    def _park(self, durable: str, position: int, event_id: UUID, *_: str) -> Rows:
        self._rows["parked"][durable, position] = {"event_id": event_id}
        return []

    def _parked_positions(self, durable: str) -> Rows:
        return [{"position": key[1]} for key in sorted(self._rows["parked"]) if key[0] == durable]

    def _take_parked(self, durable: str, position: int) -> Rows:
        row = self._rows["parked"].pop((durable, position), None)
        return [row] if row else []

    def _clear(self, table: str) -> Rows:
        self._rows[table].clear()
        return []

    def _add_to_fold(self, stream: str, position: int, square: int) -> Rows:
        row = self._rows[FOLDS].setdefault(stream, {"stream": stream, "events": 0, "positions": 0, "squares": 0})
        row.update(events=row["events"] + 1, positions=row["positions"] + position, squares=row["squares"] + square)
        return []


class MemoryPool:
    """Sessions for whoever asks."""

    def __init__(self, backend: "MemoryBackend") -> None:
        self._backend = backend

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[MemorySession]:
        """A session for a while."""
        yield self._backend.session()

    async def fetch(self, query: str, *arguments: Any) -> Rows:
        """A query in a session of its own."""
        return await self._backend.session().fetch(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        """The same, for one value."""
        return await self._backend.session().fetchval(query, *arguments)


class MemoryBackend:
    """Log, stream and tables in this process."""

    def __init__(self, log: MemoryEventStore | None = None) -> None:
        self.log = log or MemoryEventStore()
        self.jetstream = MemoryStream()
        self.tables = MemoryTables()
        self.pool = MemoryPool(self)
        self.relay_connection = self.session()
        self.remembered = 0

    @property
    def store(self) -> EventStore:
        """The log."""
        return self.log

    def session(self) -> MemorySession:
        """A connection to the tables."""
        return MemorySession(self.tables, self.log)

    def writer(self, category: str) -> EventStore:  # noqa: ARG002 - one log, no roles
        """The log."""
        return self.log

    async def connect(self) -> MemorySession:
        """A session for the consumer."""
        return self.session()

    async def open_stream(self) -> tuple[Publishing, StreamEnd]:
        """The stream from its end."""
        return self.jetstream, self.jetstream.end()

    async def wipe_stream(self) -> None:
        """An empty one that remembers nothing."""
        self.jetstream = MemoryStream()

    async def remember(self, position: int) -> None:
        """The relay's checkpoint."""
        self.remembered = position

    async def stream(self) -> list[Delivered]:
        """Every message."""
        return list(self.jetstream.messages)

    async def close(self) -> None:
        """Nothing to end."""
