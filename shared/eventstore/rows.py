"""Events on their way into and out of a log's rows: the one place where payloads become bytes and back."""

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from shared.contracts import catalogue
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.eventstore.api import Append
from shared.eventstore.hashing import StoredEvent
from shared.ids import new_id
from shared.problems import Rejected

Row = Mapping[str, Any] | asyncpg.Record

MAX_EVENT_BYTES = 960 * 1024
"""An event must fit into one NATS message with its envelope, and NATS takes 1 MiB unless it is told otherwise."""

_STREAM = re.compile(r"[a-z_]+-[A-Za-z0-9_-]+")
_meta_encoder = msgspec.json.Encoder(order="deterministic")
_meta_decoder = msgspec.json.Decoder(EventMetadata)


class NewEvent(msgspec.Struct, frozen=True):
    """An event as it will be stored, before the log gives it a position."""

    event_id: UUID
    type: str
    data: bytes


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """An Append whose payloads are bytes: encoded once, before it waits for its batch."""

    stream: str
    expected_version: int
    correlation_id: UUID
    meta: bytes
    events: tuple[NewEvent, ...]
    size_bytes: int


def encode_meta(meta: EventMetadata) -> bytes:
    """The JSON of the metadata that is stored and hashed."""
    return _meta_encoder.encode(meta)


def encode(append: Append) -> Encoded:
    """The bytes to store; raises ValueError for an append that no log could take, Rejected if it is too large."""
    if not append.events:
        raise ValueError(f"nothing to append to {append.stream}")
    if not _STREAM.fullmatch(append.stream):
        raise ValueError(f"{append.stream!r} is not a stream name: <category>-<id>")
    if append.expected_version < 0:
        raise ValueError("an expected version is 0 or more")
    category = append.stream.partition("-")[0]
    events = tuple(NewEvent(new_id(), catalogue.event_type(type(e)), catalogue.encode(e)) for e in append.events)
    for event in events:
        if event.type.partition(".")[0] != category:
            raise ValueError(f"{event.type} does not belong in {append.stream}")
        if len(event.data) > MAX_EVENT_BYTES:
            raise Rejected("payload_too_large", f"{event.type} is {len(event.data)} bytes", limit_bytes=MAX_EVENT_BYTES)
    return Encoded(
        stream=append.stream,
        expected_version=append.expected_version,
        correlation_id=append.correlation_id,
        meta=encode_meta(append.meta),
        events=events,
        size_bytes=sum(len(event.data) for event in events),
    )


def recorded(row: Row) -> RecordedEvent:
    """A row of log.events as the envelope that everyone reads.

    Its ids stay asyncpg's own kind of UUID: equal to Python's, and an order of magnitude faster to make and to print.
    """
    return RecordedEvent(
        global_position=row["global_position"],
        event_id=row["event_id"],
        stream=row["stream"],
        stream_version=row["stream_version"],
        type=row["type"],
        data=msgspec.Raw(row["data"]),
        meta=_meta_decoder.decode(row["meta"]),
        correlation_id=row["correlation_id"],
        recorded_at=row["recorded_at"],
        hash=row["hash"],
    )


def stored(row: Row) -> StoredEvent:
    """A row of log.events as it stands, for those who check hashes."""
    return StoredEvent(**dict(row.items()))
