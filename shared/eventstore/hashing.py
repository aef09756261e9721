"""The hash chain in Python: the same bytes as `log.append_batch` computes in SQL (docs/decisions/0002).

Every field is of fixed width or carries its length, so no two different events have the same bytes.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import pack
from uuid import UUID

import msgspec

NO_HASH = b""
"""What the first event of a stream, and the first seal, follow."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the log exactly as stored: its hash, and every field that the hash covers."""

    global_position: int
    event_id: UUID
    stream: str
    stream_version: int
    type: str
    data: bytes
    meta: bytes
    correlation_id: UUID
    recorded_at: datetime
    hash: bytes


def microseconds(moment: datetime) -> int:
    """A moment as whole microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def event_hash(previous: bytes, event: StoredEvent) -> bytes:
    """SHA-256 over the previous event's hash of the same stream (NO_HASH for the first) and every stored field."""
    stream, type_ = event.stream.encode(), event.type.encode()
    return sha256(
        b"".join(
            (
                pack(">i", len(previous)),
                previous,
                pack(">q", event.global_position),
                event.event_id.bytes,
                pack(">i", len(stream)),
                stream,
                pack(">ii", event.stream_version, len(type_)),
                type_,
                pack(">i", len(event.data)),
                event.data,
                pack(">i", len(event.meta)),
                event.meta,
                event.correlation_id.bytes,
                pack(">q", microseconds(event.recorded_at)),
            )
        ),
    ).digest()


def seal_hash(previous: bytes, from_position: int, to_position: int, hashes: Iterable[bytes]) -> bytes:
    """The running hash of the global order: over the previous seal's hash, the range, and its events' hashes."""
    digest = sha256(pack(">i", len(previous)) + previous + pack(">qq", from_position, to_position))
    for hash_ in hashes:
        digest.update(hash_)
    return digest.digest()
