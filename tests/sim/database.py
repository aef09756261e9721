"""Postgres in memory, as far as named queries need it: read committed, row locks until the end of the transaction,
session locks until the end of the connection, and the log in the same transactions as the rows.

What each query does is in `queries_*.py`; tests/contract/test_query_twins.py holds both against the real server.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Hashable, Iterable
from datetime import datetime
from typing import Any

from shared.eventstore.memory import MemoryEventStore

Row = dict[str, Any]
Key = Hashable
Table = dict[Key, Row]
Twin = Callable[..., "list[Row] | Coroutine[Any, Any, list[Row] | None] | None"]
"""`twin(transaction, *arguments)`: the rows it gives, None for a statement that gives none."""

APPEND_LOCK = ("log", "append")
LOCK_TIMEOUT_S = 30.0


class Locks:
    """Exclusive locks with a fair queue each; a lock belongs to a transaction."""

    def __init__(self) -> None:
        self._holder: dict[Key, Transaction] = {}
        self._waiting: defaultdict[Key, deque[tuple[Transaction, asyncio.Future[None]]]] = defaultdict(deque)

    def is_free(self, key: Key, transaction: "Transaction") -> bool:
        """Whether nobody else holds it."""
        return self._holder.get(key, transaction) is transaction

    async def take(self, key: Key, transaction: "Transaction") -> None:
        """Waits for the lock; TimeoutError as from a statement that took too long."""
        holder = self._holder.get(key)
        if holder is transaction:
            return
        if holder is not None:
            granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[key].append((transaction, granted))
            try:
                async with asyncio.timeout(LOCK_TIMEOUT_S):
                    await granted
            except BaseException:
                if granted.done() and not granted.cancelled() and self._holder.get(key) is transaction:
                    self._pass_on(key)
                raise
        self._holder[key] = transaction
        transaction.held.append(key)

    def release(self, transaction: "Transaction") -> None:
        """Everything the transaction holds goes to whoever waits first."""
        for key in transaction.held:
            self._pass_on(key)
        transaction.held.clear()

    def _pass_on(self, key: Key) -> None:
        del self._holder[key]
        waiting = self._waiting[key]
        while waiting:
            transaction, granted = waiting.popleft()
            if not granted.done():
                self._holder[key] = transaction
                granted.set_result(None)
                return


class Database:
    """The tables of every schema, the log, and who holds which lock."""

    def __init__(self, log: MemoryEventStore, now: Callable[[], datetime]) -> None:
        self.log = log
        self.now = now
        self.locks = Locks()
        self.sessions: dict[Key, object] = {}
        self.listeners: dict[Callable[..., None], None] = {}
        self.connections: dict[Callable[[], None], None] = {}
        """How each open session is ended."""
        self.is_away = False
        self._schemas: defaultdict[str, defaultdict[str, Table]] = defaultdict(lambda: defaultdict(dict))

    def go_away(self, seconds: float) -> None:
        """The server dies, with every session and open transaction, and is back after a while."""
        self.is_away = True
        for end in list(self.connections):
            end()
        asyncio.get_running_loop().call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        self.is_away = False

    def table(self, schema: str, name: str) -> Table:
        """The committed rows by primary key."""
        return self._schemas[schema][name]

    def schema(self, schema: str) -> defaultdict[str, Table]:
        """The committed tables of one service."""
        return self._schemas[schema]


class Transaction:
    """What one transaction sees: the committed rows under its own changes."""

    __slots__ = ("_tables", "_written", "appends", "database", "held", "schema", "session")

    def __init__(self, database: Database, schema: str, session: object) -> None:
        self.database = database
        self.schema = schema
        self.session = session
        self.held: list[Key] = []
        self.appends: list[Any] = []
        self._tables = database.schema(schema)
        self._written: dict[str, dict[Key, Row | None]] = {}

    def now(self) -> datetime:
        """clock_timestamp()."""
        return self.database.now()

    def get(self, table: str, key: Key) -> Row | None:
        """One row."""
        written = self._written.get(table)
        if written is not None and key in written:
            return written[key]
        return self._tables[table].get(key)

    def put(self, table: str, key: Key, row: Row) -> None:
        """Inserts or replaces a row."""
        self._written.setdefault(table, {})[key] = row

    def change(self, table: str, key: Key, **changes: Any) -> None:
        """Updates columns of a row that is there."""
        row = self.get(table, key)
        if row is not None:
            self.put(table, key, {**row, **changes})

    def drop(self, table: str, key: Key) -> None:
        """Deletes a row."""
        self._written.setdefault(table, {})[key] = None

    def rows(self, table: str) -> Iterable[Row]:
        """Every row, in the order in which they were first inserted."""
        written = self._written.get(table)
        committed = self._tables[table]
        if not written:
            return list(committed.values())
        merged: dict[Key, Row | None] = {**committed, **written}
        return [row for row in merged.values() if row is not None]

    async def lock(self, table: str, key: Key) -> None:
        """SELECT … FOR UPDATE, or what an UPDATE does: until the transaction ends nobody else changes the row."""
        await self.database.locks.take((self.schema, table, key), self)

    def is_locked_by_others(self, table: str, key: Key) -> bool:
        """What SKIP LOCKED skips."""
        return not self.database.locks.is_free((self.schema, table, key), self)

    def commit(self) -> None:
        """Makes everything visible at once and lets the locks go."""
        for name, written in self._written.items():
            table = self._tables[name]
            for key, row in written.items():
                if row is None:
                    table.pop(key, None)
                else:
                    table[key] = row
        for append in self.appends:
            at_once(self.database.log.append(append))
        appended = bool(self.appends)
        self.rollback()
        if appended:
            loop = asyncio.get_running_loop()
            for listener in self.database.listeners:
                loop.call_soon(listener, None, 0, "log_appended", "")

    def rollback(self) -> None:
        """Forgets everything and lets the locks go."""
        self._written = {}
        self.appends = []
        self.database.locks.release(self)


def at_once(coroutine: Any) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")
