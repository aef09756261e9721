"""The chain's bytes, written down once: a change here would make every existing log look tampered with."""

from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from uuid import UUID

import msgspec

from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash, microseconds, seal_hash

EVENT = StoredEvent(
    global_position=7,
    event_id=UUID("00112233-4455-6677-8899-aabbccddeeff"),
    stream="job-ä",
    stream_version=2,
    type="job.queued.v1",
    data=b'{"a":1}',
    meta=b"{}",
    correlation_id=UUID(int=1),
    recorded_at=datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=UTC),
    hash=b"",
)


def test_event_hash_covers_exactly_these_bytes() -> None:
    written_out = bytes.fromhex(
        "00000002 6162"  # the previous hash
        "0000000000000007 00112233445566778899aabbccddeeff"
        "00000006 6a6f622dc3a4 00000002"
        "0000000d 6a6f622e7175657565642e7631"
        "00000007 7b2261223a317d 00000002 7b7d"
        "00000000000000000000000000000001"
    ) + (1795309323456789).to_bytes(8, "big")
    assert microseconds(EVENT.recorded_at) == 1795309323456789
    assert event_hash(b"ab", EVENT) == sha256(written_out).digest()


def test_seal_hash_covers_exactly_these_bytes() -> None:
    written_out = bytes.fromhex("00000000 0000000000000001 0000000000000002") + b"one" + b"two"
    assert seal_hash(NO_HASH, 1, 2, [b"one", b"two"]) == sha256(written_out).digest()


def test_same_moment_in_another_zone_has_the_same_hash() -> None:
    elsewhere = msgspec.structs.replace(EVENT, recorded_at=EVENT.recorded_at.astimezone(timezone(timedelta(hours=9))))
    assert event_hash(NO_HASH, elsewhere) == event_hash(NO_HASH, EVENT)
