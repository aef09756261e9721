"""A whole log as a text file: one stored row a line, payloads exactly as hashed, so that it can be read for ever."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from shared.contracts.envelope import RecordedEvent
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash
from shared.eventstore.rows import recorded

HISTORIES = Path(__file__).parents[1] / "golden" / "histories"


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorded log must add up to, as the running system had it when it was recorded."""

    stories: dict[str, UUID]
    """What happened, in words, and the job it happened to."""
    statuses: dict[str, str]
    """Story -> the word that the HTTP API showed; `deleted` for a job that it no longer showed."""
    tables: dict[str, dict[str, list[str]]]
    """Service -> table -> its rows as `jsonb` text, sorted."""


def write_log(path: Path, events: Iterable[StoredEvent]) -> None:
    """One JSON object a line; `data` and `meta` are texts that hold the stored JSON unchanged."""
    lines = (
        json.dumps(
            {
                "position": event.global_position,
                "event_id": str(event.event_id),
                "stream": event.stream,
                "version": event.stream_version,
                "type": event.type,
                "data": event.data.decode(),
                "meta": event.meta.decode(),
                "correlation_id": str(event.correlation_id),
                "recorded_at": event.recorded_at.isoformat(),
                "hash": event.hash.hex(),
            }
        )
        for event in events
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_log(path: Path) -> list[StoredEvent]:
    """The rows as they were stored, in log order."""
    return [_stored(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def envelopes(rows: Iterable[StoredEvent]) -> list[RecordedEvent]:
    """The rows as every reader of the log gets them."""
    return [recorded(msgspec.structs.asdict(row)) for row in rows]


def rechained(rows: Iterable[StoredEvent]) -> list[StoredEvent]:
    """The same rows with the hashes that their fields call for."""
    heads: dict[str, bytes] = {}
    chained: list[StoredEvent] = []
    for row in rows:
        heads[row.stream] = event_hash(heads.get(row.stream, NO_HASH), row)
        chained.append(msgspec.structs.replace(row, hash=heads[row.stream]))
    return chained


def read_expected(log: Path) -> Expected:
    """What stands beside a recorded log."""
    return msgspec.json.decode(log.with_suffix(".expected.json").read_bytes(), type=Expected)


def _stored(line: Mapping[str, Any]) -> StoredEvent:
    return StoredEvent(
        global_position=line["position"],
        event_id=UUID(line["event_id"]),
        stream=line["stream"],
        stream_version=line["version"],
        type=line["type"],
        data=line["data"].encode(),
        meta=line["meta"].encode(),
        correlation_id=UUID(line["correlation_id"]),
        recorded_at=datetime.fromisoformat(line["recorded_at"]),
        hash=bytes.fromhex(line["hash"]),
    )
