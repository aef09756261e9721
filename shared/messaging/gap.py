"""Messages as events, and the question whether one is missing between them. The relay writes the headers."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec
import structlog

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import Durable
from shared.messaging.pull import Message

PREVIOUS_HEADER = "Tw-Prev-In-Category"
PREVIOUS_OF_EACH_HEADER = "Tw-Prev-Of-Each-Category"
"""`account=3,job=12`. Messages that were published before there was this header have the other one alone."""
MESSAGE_ID_HEADER = "Nats-Msg-Id"
"""`<store id>:<position>`."""

log = structlog.stdlib.get_logger()

_decoder = msgspec.json.Decoder(RecordedEvent)


class Delivery(msgspec.Struct, frozen=True):
    """An event as JetStream delivered it; `previous` has the last position before it of each category it speaks of."""

    event: RecordedEvent
    previous: Mapping[str, int]
    message: Message


def read(message: Message, store_id: UUID) -> Delivery | None:
    """The event in a message, or None for one that cannot be read or tells of another log: then our log has to say."""
    headers = message.headers or {}
    message_id = headers.get(MESSAGE_ID_HEADER, "")
    if not message_id.startswith(f"{store_id}:"):
        log.warning("consumer.message.foreign", subject=message.subject, message_id=message_id)
        return None
    try:
        event = _decoder.decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("consumer.message.unreadable", subject=message.subject, error=str(error))  # noqa: TRY400
        return None
    return Delivery(event, _previous(headers, event.category), message)


def _previous(headers: Mapping[str, str], category: str) -> dict[str, int]:
    """What the headers state and can be read: less makes a consumer ask the log, no more."""
    stated = [(category, headers.get(PREVIOUS_HEADER, ""))]
    for each in headers.get(PREVIOUS_OF_EACH_HEADER, "").split(","):
        name, _, position = each.partition("=")
        stated.append((name, position))
    return {name: int(position) for name, position in stated if position.isdecimal()}


def is_contiguous(checkpoint: int, deliveries: Sequence[Delivery], durable: Durable) -> bool:
    """Whether the headers prove that no event of the durable lies between the checkpoint and the last delivery.

    Each delivery states how far each category had come before it: nothing of the durable's categories may lie beyond
    what was reached by then. One that says nothing of a category of the durable proves nothing.
    """
    reached = checkpoint
    for delivery in deliveries:
        previous = [delivery.previous.get(category) for category in durable.categories]
        if any(position is None or position > reached for position in previous):
            return False
        reached = max(reached, delivery.event.global_position)
    return True
