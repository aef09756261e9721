"""One file for each stored event type: JSON exactly as the log has it, which every later version must still read.

`python -m tests.golden.add` writes the files that are missing and touches no other: what was stored once is stored.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from shared.contracts import catalogue
from shared.contracts.catalogue import EVENT_TYPES
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash
from tests.support.contract_structs import BEGAN, IDS, barest, fullest

EVENTS = Path(__file__).with_name("events")
CHAIN = Path(__file__).with_name("hash_chain.json")
META = b'{"actor":"user:golden","causation_id":"01939b70-0000-7000-8000-000000000002"}'


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One stored payload, and the hash it has as the first event of the stream that `row_of` puts it in."""

    name: str
    data: str
    """The stored JSON, byte for byte."""
    hash: str


def row_of(type_: str, data: bytes, *, position: int = 1, version: int = 1, hash_: bytes = NO_HASH) -> StoredEvent:
    """A payload as a row of the log whose other fields are always the same."""
    return StoredEvent(
        global_position=position,
        event_id=IDS[0],
        stream=f"{type_.partition('.')[0]}-{IDS[1]}",
        stream_version=version,
        type=type_,
        data=data,
        meta=META,
        correlation_id=IDS[3],
        recorded_at=BEGAN,
        hash=hash_,
    )


def path_of(type_: str) -> Path:
    """Where the examples of a type are."""
    return EVENTS / f"{type_}.json"


def read_examples(path: Path) -> list[Example]:
    """The stored payloads of one type."""
    return msgspec.json.decode(path.read_bytes(), type=list[Example])


def all_examples() -> Iterator[tuple[str, Example]]:
    """Every stored payload, with its type."""
    for path in sorted(EVENTS.glob("*.json")):
        yield from ((path.stem, example) for example in read_examples(path))


def missing_types() -> list[str]:
    """Event types that have no file."""
    return [type_ for type_ in sorted(EVENT_TYPES) if not path_of(type_).exists()]


def new_examples(type_: str) -> list[Example]:
    """The fullest and the barest event of a type, as today's code stores it."""
    kind = EVENT_TYPES[type_]
    found: list[Example] = []
    for name, event in (("fullest", fullest(kind)), ("barest", barest(kind))):
        data = catalogue.encode(event)
        found.append(Example(name=name, data=data.decode(), hash=event_hash(NO_HASH, row_of(type_, data)).hex()))
    return found


def only_known_then(now: Any, then: Any) -> Any:
    """`now` without the members that `then`, written by an older version, does not have."""
    if isinstance(now, dict) and isinstance(then, dict):
        older = cast("dict[str, Any]", then)
        newer = cast("dict[str, Any]", now)
        return {name: only_known_then(newer[name], older[name]) for name in newer if name in older}
    if isinstance(now, list) and isinstance(then, list):
        pairs = zip(cast("list[Any]", now), cast("list[Any]", then), strict=True)
        return [only_known_then(one, other) for one, other in pairs]
    return cast("object", now)


def as_text(examples: list[Example]) -> str:
    """The content of a file."""
    return json.dumps(msgspec.to_builtins(examples), indent=1, ensure_ascii=False) + "\n"
