"""Messages as events, and the question whether one is missing between them. The relay writes the headers."""

from collections.abc import Sequence
from uuid import UUID

import msgspec
import structlog

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import Durable
from shared.messaging.pull import Message

PREVIOUS_HEADER = "Tw-Prev-In-Category"
MESSAGE_ID_HEADER = "Nats-Msg-Id"
"""`<store id>:<position>`."""

log = structlog.stdlib.get_logger()

_decoder = msgspec.json.Decoder(RecordedEvent)


class Delivery(msgspec.Struct, frozen=True):
    """An event as JetStream delivered it; `previous` is the position of its category's event before it, if stated."""

    event: RecordedEvent
    previous: int | None
    message: Message


def read(message: Message, store_id: UUID) -> Delivery | None:
    """The event in a message, or None for one that cannot be read or tells of another log: then our log has to say."""
    headers = message.headers or {}
    stated = headers.get(PREVIOUS_HEADER, "")
    message_id = headers.get(MESSAGE_ID_HEADER, "")
    if not message_id.startswith(f"{store_id}:"):
        log.warning("consumer.message.foreign", subject=message.subject, message_id=message_id)
        return None
    try:
        event = _decoder.decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("consumer.message.unreadable", subject=message.subject, error=str(error))  # noqa: TRY400
        return None
    return Delivery(event, int(stated) if stated.isdecimal() else None, message)


def is_contiguous(checkpoint: int, deliveries: Sequence[Delivery], durable: Durable) -> bool:
    """Whether the headers prove that no event of the durable lies between the checkpoint and the last delivery.

    They can for a durable of one category; with several, an event of the other ones may be missing unseen.
    """
    if len(durable.categories) != 1:
        return False
    reached = checkpoint
    for delivery in deliveries:
        if delivery.previous is None or delivery.previous > reached:
            return False
        reached = max(reached, delivery.event.global_position)
    return True
