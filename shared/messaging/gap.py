"""Messages as events, and the question whether one is missing between them. The relay writes the headers."""

from collections.abc import Sequence

import msgspec
import structlog
from nats.aio.msg import Msg

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import Durable

POSITION_HEADER = "Tw-Position"
PREVIOUS_HEADER = "Tw-Prev-In-Category"

log = structlog.stdlib.get_logger()

_decoder = msgspec.json.Decoder(RecordedEvent)


class Delivery(msgspec.Struct, frozen=True):
    """An event as JetStream delivered it; `previous` is the position of its category's event before it, if stated."""

    event: RecordedEvent
    previous: int | None
    message: Msg


def read(message: Msg) -> Delivery | None:
    """The event in a message, or None for one that cannot be read: then the log has to tell."""
    stated = (message.headers or {}).get(PREVIOUS_HEADER, "")
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
