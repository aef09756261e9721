"""What JetStream holds of the log, read under the relay's own rights."""

from typing import Any, cast

import msgspec
from nats.js.errors import NotFoundError

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import EVENTS_STREAM
from tests.support.bus import connected_bus, stream_api


class Published(msgspec.Struct, frozen=True):
    """One message of the stream of events."""

    subject: str
    headers: dict[str, str]
    event: RecordedEvent


async def published(server: EmbeddedNats) -> list[Published]:
    """Everything in the stream of events, in its order."""
    async with connected_bus(server, "relay") as bus:
        stream = cast("Any", stream_api(bus))  # nats-py types its messages' headers by halves
        try:
            last = (await stream.stream_info(EVENTS_STREAM)).state.last_seq
            raw = [await stream.get_msg(EVENTS_STREAM, seq=number) for number in range(1, last + 1)]
        except NotFoundError:
            return []
    return [Published(m.subject, dict(m.headers), msgspec.json.decode(m.data, type=RecordedEvent)) for m in raw]


async def published_positions(server: EmbeddedNats) -> list[int]:
    """The positions of everything in the stream of events, in its order."""
    return [one.event.global_position for one in await published(server)]
