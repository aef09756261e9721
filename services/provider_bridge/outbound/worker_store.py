"""Workers and their runs, rows and events in one transaction each. The database is ours, so epochs are kept out truly.

Rows follow from events: whoever decides something about a worker does it here.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.attempt_stream import ACTOR
from services.provider_bridge.domain.worker import WorkerState
from services.provider_bridge.domain.worker_acts import WorkerAct
from services.provider_bridge.outbound.credential_key import CredentialKey, OtherKey, Sealed
from services.provider_bridge.queries import WORKER_QUERIES as SQL
from services.provider_bridge.worker_stream import WORKER, worker_stream
from shared.clock import Clock
from shared.contracts.envelope import EventMetadata
from shared.contracts.job import Event
from shared.contracts.worker import WorkerCreated, WorkerReleased, WorkerRemoved, WorkerRunBegun
from shared.decider import MAX_DECISIONS
from shared.eventstore.api import Append, Appended, VersionConflict
from shared.eventstore.group_commit import Connection
from shared.eventstore.outages import unavailable_on_outage
from shared.eventstore.transactional import TransactionalStore
from shared.known_streams import KnownStreams
from shared.problems import Unavailable

_ACQUIRE_TIMEOUT_S = 10.0
KEPT_WORKERS = 5000
OURS = EventMetadata(actor=ACTOR)


class RowMoved(Exception):  # noqa: N818 - an outcome of a race, not an error
    """The run is not what the decision took it to be; nothing was written."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision led to."""

    state: WorkerState
    position: int = 0
    released: list[UUID] = []
    """Attempts whose run is over by it."""


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """When a worker was made, heard of, registered, and its stream seen."""

    worker_id: UUID
    created_at: datetime
    heard_at: datetime | None
    connected_at: datetime | None
    stream_at: datetime | None
    said: str | None
    """Its last heartbeat, as JSON."""


class WorkerStore:
    """What the bridges of one database know of workers. Raises Unavailable when Postgres is away."""

    def __init__(self, pool: asyncpg.Pool, store: TransactionalStore, clock: Clock, key: CredentialKey) -> None:
        self._pool = pool
        self._key = key
        self._store = store
        self._streams = KnownStreams(store, WORKER, KEPT_WORKERS)
        self.clock = clock
        self.changed: Callable[[], None] = _nobody_cares
        """Called when something was written about a worker: what can be had may be another."""

    async def load(self, worker_id: UUID) -> WorkerState:
        """The worker as the log has it now."""
        return await self._streams.load(worker_stream(worker_id))

    async def present(self) -> list[Presence]:
        """Every worker that was made and not removed, the oldest first."""
        rows = await self.rows(SQL.all_workers)
        return [msgspec.convert(dict(row), Presence, builtin_types=(UUID, datetime)) for row in rows]

    def sealed(self, token: str, attempt_id: UUID) -> bytes:
        """A trainer's token as it is kept until its worker has it: people may read our tables."""
        return msgspec.msgpack.encode(self._key.seal(token, str(attempt_id)))

    def unsealed(self, kept: bytes, attempt_id: UUID) -> str:
        """The token again. Raises Unavailable when another bridge kept it under another key."""
        try:
            return self._key.open(msgspec.msgpack.decode(kept, type=Sealed), str(attempt_id)).reveal()
        except OtherKey:
            raise Unavailable(
                "this bridge has another TUNEWRIGHT_CREDENTIAL_KEY than the one that gave the run to the worker"
            ) from None

    async def commit(
        self, worker_id: UUID, act: WorkerAct, *, meta: EventMetadata = OURS, only_if_untold: bool = False
    ) -> Done:
        """Decides, and writes events and rows together; decides again when the stream moved.

        Raises:
            Rejected: the rule said no.
            RowMoved: with `only_if_untold`, the worker was told of the run that was to be released.
        """
        for _ in range(MAX_DECISIONS):
            version, state = await self._streams.current(worker_stream(worker_id))
            events = list(WORKER.decide(state, act))
            if not events:
                return Done(state=state)
            try:
                async with self.transaction() as connection:
                    await _write_rows(connection, worker_id, events, only_if_untold=only_if_untold)
                    appended = await self.append(connection, worker_id, version, events, meta)
            except VersionConflict:
                continue
            self.changed()
            for event in events:
                state = WORKER.evolve(state, event)
            released = [event.attempt_id for event in events if isinstance(event, WorkerReleased)]
            return Done(state=state, position=appended.last_position, released=released)
        raise Unavailable(f"worker {worker_id} kept changing; try again")

    async def version(self, worker_id: UUID) -> tuple[int, WorkerState]:
        """What an append in the caller's own transaction is decided on."""
        return await self._streams.current(worker_stream(worker_id))

    async def append(
        self, connection: Connection, worker_id: UUID, version: int, events: list[Event], meta: EventMetadata = OURS
    ) -> Appended:
        """Appends inside the open transaction. Raises VersionConflict."""
        append = Append(
            stream=worker_stream(worker_id),
            expected_version=version,
            events=events,
            meta=meta,
            correlation_id=worker_id,
        )
        [outcome] = await self._store.append_in(connection, [append])
        if isinstance(outcome, VersionConflict):
            raise outcome
        return outcome

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """An open transaction."""
        with unavailable_on_outage("change workers"):
            async with self._pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                yield connection

    async def rows(self, query: str, *arguments: object) -> list[Any]:
        """The answer of one statement."""
        with unavailable_on_outage("read workers"):
            return await self._pool.fetch(query, *arguments, timeout=_ACQUIRE_TIMEOUT_S)

    async def row(self, query: str, *arguments: object) -> Any:
        """The first row of one statement's answer, None if there is none."""
        found = await self.rows(query, *arguments)
        return found[0] if found else None


async def _write_rows(connection: Connection, worker_id: UUID, events: list[Event], *, only_if_untold: bool) -> None:
    for event in events:
        match event:
            case WorkerCreated():
                await connection.execute(SQL.insert_worker, worker_id, event.created_at)
            case WorkerRemoved():
                await connection.execute(SQL.delete_worker, worker_id)
            case WorkerRunBegun():
                await connection.execute(SQL.begin_run, event.attempt_id, event.begun_at)
            case WorkerReleased():
                word = "ended" if event.outcome == "exited" else "gone"
                end = (event.exit_code, event.ended_at or event.released_at, event.last_words)
                if not await connection.fetch(SQL.end_run, event.attempt_id, word, *end, only_if_untold):
                    raise RowMoved
            case _:
                continue


def _nobody_cares() -> None:
    """Whoever wants to know says so."""
