"""Puts events into JetStream in the log's order, each exactly once, and proves it by the stream's sequence numbers.

Every message states the sequence that the stream must be at (`Nats-Expected-Last-Sequence`), so a lost message makes
the server refuse those behind it: the stream is always an unbroken beginning of the log, and its last message says
where to go on. `Nats-Msg-Id` keeps a repeat that crosses its own late acknowledgement from being stored twice.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import msgspec

from shared.contracts.catalogue import WRITERS
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import EVENTS_STREAM, event_subject
from shared.eventstore.acks import AckInbox, PubAck, RefusedError
from shared.eventstore.group_commit import Connection
from shared.eventstore.jetstream import within
from shared.eventstore.queries import QUERIES
from shared.eventstore.topology import EVENT_ID, MESSAGE_ID, POSITION, ForeignStreamError, StreamEnd

PREVIOUS = "Tw-Prev-In-Category"
PREVIOUS_OF_EACH = "Tw-Prev-Of-Each-Category"
"""`account=3,artifact=0,attempt=9,dataset=0,job=12`: each category's last position before this event, 0 for none."""
EXPECTED_STREAM = "Nats-Expected-Stream"
EXPECTED_SEQUENCE = "Nats-Expected-Last-Sequence"
ACKS_TIMEOUT_S = 10.0
_QUERY_TIMEOUT_S = 30.0

_encoder = msgspec.json.Encoder()


class Publisher:
    """Appends to the stream of events from where it ends. One that raised anything is of no more use."""

    def __init__(self, inbox: AckInbox, store_id: UUID, end: StreamEnd) -> None:
        self._inbox = inbox
        self._store_id = store_id
        self._last_of_category: dict[str, int] = {}
        self.position = end.position
        self.sequence = end.sequence

    async def publish(self, connection: Connection, events: Sequence[RecordedEvent]) -> None:
        """Returns when JetStream has acknowledged all of them; they follow `position` without a gap.

        Raises:
            ForeignStreamError: the stream took an event for one it has elsewhere.
            nats.errors.Error: anything else; some of the events may be in the stream.
        """
        for category in sorted({*WRITERS, *(event.category for event in events)} - self._last_of_category.keys()):
            self._last_of_category[category] = await self._last(connection, category, events[0].global_position)
        headers = [self._headers(event, number) for number, event in enumerate(events)]
        answers: list[asyncio.Future[PubAck]] = []
        try:
            for event, header in zip(events, headers, strict=True):
                subject = event_subject(event.type, event.stream)
                answers.append(await self._inbox.send(subject, _encoder.encode(event), header))
            for ack in await within(asyncio.gather(*answers), ACKS_TIMEOUT_S):
                self._check(ack)
        finally:
            for answer in answers:
                answer.cancel()
        self.position = events[-1].global_position

    async def _last(self, connection: Connection, category: str, before: int) -> int:
        """The category's last position before another, 0 for none."""
        last: int = await connection.fetchval(QUERIES.previous_in_category, category, before, timeout=_QUERY_TIMEOUT_S)
        return last

    def _headers(self, event: RecordedEvent, number: int) -> dict[str, str]:
        position, last = event.global_position, self._last_of_category
        headers = {
            MESSAGE_ID: f"{self._store_id}:{position}",
            EXPECTED_STREAM: EVENTS_STREAM,
            EXPECTED_SEQUENCE: str(self.sequence + number),
            POSITION: str(position),
            PREVIOUS: str(last[event.category]),
            PREVIOUS_OF_EACH: ",".join(f"{category}={previous}" for category, previous in last.items()),
            EVENT_ID: str(event.event_id),
        }
        last[event.category] = position
        return headers

    def _check(self, ack: PubAck) -> None:
        """A duplicate is what we want to see only where the message itself belongs."""
        if ack.error is not None:
            raise RefusedError(f"{ack.error.description} (error {ack.error.err_code})")
        self.sequence += 1
        if ack.seq != self.sequence:
            what = "a duplicate of" if ack.duplicate else "a message at"
            raise ForeignStreamError(f"it reports {what} sequence {ack.seq} where {self.sequence} is due")
