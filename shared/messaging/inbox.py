"""What a durable has handled, in its service's own schema: inbox, checkpoint and parked rows commit together."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import Durable
from shared.observability.logging import redact_text
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).with_name("sql") / "queries.sql")
KEEP_POSITIONS = 50_000
"""How far below its checkpoint a durable remembers event ids. Whatever is older counts as handled."""

MAX_REASON_CHARACTERS = 2000


class Inbox:
    """One durable's memory, on the connection that holds the durable's lock."""

    def __init__(self, connection: asyncpg.Connection, durable: Durable) -> None:
        self.connection = connection
        self._durable = durable.name

    async def try_lock(self) -> bool:
        """Whether this session is now the durable's active one; the lock ends with the session."""
        return bool(await self.connection.fetchval(QUERIES.try_lock, self._durable))

    async def start(self) -> int:
        """The checkpoint's position; a new durable starts at 0."""
        await self.connection.execute(QUERIES.ensure_checkpoint, self._durable)
        return int(await self.connection.fetchval(QUERIES.read_checkpoint, self._durable))

    async def unhandled(self, events: Sequence[RecordedEvent], checkpoint: int) -> list[RecordedEvent]:
        """The events that the inbox does not hold and that are not too old to ask, in position order.

        Nothing above the checkpoint is in it, because whoever puts an event in raises the checkpoint with it.
        """
        young = [event for event in events if event.global_position > checkpoint - KEEP_POSITIONS]
        doubtful = [event.event_id for event in young if event.global_position <= checkpoint]
        rows = await self.connection.fetch(QUERIES.already_handled, self._durable, doubtful) if doubtful else []
        handled = {row["event_id"] for row in rows}
        return sorted(
            (event for event in young if event.event_id not in handled), key=lambda event: event.global_position
        )

    async def claim(self, events: Sequence[RecordedEvent]) -> set[UUID]:
        """Within a transaction: remembers the events and raises the checkpoint; the ids that were not there before."""
        rows = await self.connection.fetch(
            QUERIES.claim_events,
            self._durable,
            [event.event_id for event in events],
            [event.global_position for event in events],
        )
        return {row["event_id"] for row in rows}

    async def park(self, event: RecordedEvent, error: BaseException) -> None:
        """Gives the event up, with the reason, and goes past it."""
        reason = redact_text(f"{type(error).__name__}: {error}").replace("\0", "")[:MAX_REASON_CHARACTERS]
        async with self.connection.transaction():
            if event.event_id not in await self.claim([event]):
                return
            await self.connection.execute(
                QUERIES.park_event,
                self._durable,
                event.global_position,
                event.event_id,
                event.type,
                event.stream,
                reason,
            )

    async def raise_checkpoint(self, position: int) -> None:
        """Records that nothing of ours lies between the checkpoint and `position`."""
        await self.connection.execute(QUERIES.raise_checkpoint, self._durable, position)

    async def prune(self, checkpoint: int) -> None:
        """Forgets ids of events that count as handled by their age."""
        await self.connection.execute(QUERIES.prune_inbox, self._durable, checkpoint - KEEP_POSITIONS)
