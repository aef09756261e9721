"""JetStream as subjects.py says: makes streams and durables, and finds where the published part of the log ends."""

from uuid import UUID

import msgspec
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from shared.contracts.subjects import DURABLES, EVENTS_STREAM, STREAMS, Durable, StreamSpec
from shared.eventstore.jetstream import JetStream, within

ACK_WAIT_S = 30.0
MAX_ACK_PENDING = 1024
MESSAGE_ID = "Nats-Msg-Id"
POSITION = "Tw-Position"
EVENT_ID = "Tw-Event-Id"
_NAME_IN_USE = 10058

log = structlog.stdlib.get_logger()


class StreamEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The last message of the stream of events: its sequence, and the event in it. 0 and None in an empty stream."""

    sequence: int = 0
    position: int = 0
    event_id: UUID | None = None


class ForeignStreamError(Exception):
    """The stream does not end with an event of this log, or not with a whole message: it must be made anew."""


class Topology:
    """The streams and durables of one NATS, managed for the log `store_id`."""

    def __init__(self, jetstream: JetStream, store_id: UUID, *, replicas: int = 1) -> None:
        self._jetstream = jetstream
        self._store_id = store_id
        self._replicas = replicas

    async def ensure(self) -> None:
        """Every stream and durable exists and is as subjects.py says; those that are so already stay untouched."""
        for spec in STREAMS:
            await self._ensure_stream(spec)
        there = await self._durables()
        for durable in DURABLES:
            config = _consumer_config(durable)
            if there.get(durable.name) != config.filter_subjects:
                await within(self._jetstream.add_consumer(EVENTS_STREAM, config))
                log.info("relay.durable.ensured", durable=durable.name)

    async def is_whole(self, sequence: int) -> bool:
        """Whether the stream still holds what was published up to `sequence`, and every durable is there."""
        try:
            info = await within(self._jetstream.stream_info(EVENTS_STREAM))
            there = await self._durables()
        except NotFoundError:
            return False
        purged = info.state.messages == 0 and sequence > 0
        return not purged and info.state.last_seq >= sequence and all(durable.name in there for durable in DURABLES)

    async def end(self) -> StreamEnd:
        """Where the stream ends, or ForeignStreamError."""
        info = await within(self._jetstream.stream_info(EVENTS_STREAM))
        sequence = info.state.last_seq
        if sequence == 0:
            return StreamEnd()
        try:
            message = await within(self._jetstream.get_msg(EVENTS_STREAM, seq=sequence))
        except NotFoundError as error:
            # Purged: JetStream would still take the missing events for duplicates.
            raise ForeignStreamError("its last message was removed") from error
        headers = message.headers or {}
        store_id, _, position = headers.get(MESSAGE_ID, "").partition(":")
        if store_id != str(self._store_id):
            raise ForeignStreamError(f"its last message has the id {headers.get(MESSAGE_ID)!r}")
        return StreamEnd(sequence=sequence, position=int(position), event_id=UUID(headers[EVENT_ID]))

    async def remake_events(self) -> None:
        """Deletes the stream of events with its durables and its memory of message ids, and makes it anew, empty."""
        try:
            await within(self._jetstream.delete_stream(EVENTS_STREAM))
        except NotFoundError:
            log.info("relay.stream.gone_already")
        await self.ensure()

    async def _ensure_stream(self, spec: StreamSpec) -> None:
        config = StreamConfig(
            name=spec.name,
            subjects=list(spec.subjects),
            max_age=spec.max_age_s,
            max_bytes=spec.max_bytes,
            duplicate_window=spec.duplicate_window_s,
            storage=StorageType.FILE,
            num_replicas=self._replicas,
        )
        try:
            await within(self._jetstream.add_stream(config))
        except BadRequestError as error:
            if error.err_code != _NAME_IN_USE:
                raise
            await within(self._jetstream.update_stream(config))
            log.info("relay.stream.updated", stream=spec.name)

    async def _durables(self) -> dict[str, list[str]]:
        """Each durable's name and its filter subjects."""
        found = await within(self._jetstream.consumers_info(EVENTS_STREAM))
        return {
            consumer.name: consumer.config.filter_subjects or [consumer.config.filter_subject or ""]
            for consumer in found
            if consumer.config
        }


def _consumer_config(durable: Durable) -> ConsumerConfig:
    """No limit of deliveries: giving up is ours, by parking."""
    return ConsumerConfig(
        durable_name=durable.name,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_ack_pending=MAX_ACK_PENDING,
        filter_subjects=durable.filter_subjects,
    )
