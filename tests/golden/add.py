"""Adds golden files for event types that have none: `python -m tests.golden.add`. Never changes one that is there."""

import json
import sys

from shared.eventstore.hashing import NO_HASH, event_hash, seal_hash
from tests.golden.golden_events import (
    CHAIN,
    EVENTS,
    all_examples,
    as_text,
    missing_types,
    new_examples,
    path_of,
    row_of,
)


def main() -> None:
    """Writes what is missing and says what it wrote."""
    EVENTS.mkdir(exist_ok=True)
    for type_ in missing_types():
        with path_of(type_).open("x", encoding="utf-8") as file:
            file.write(as_text(new_examples(type_)))
        sys.stdout.write(f"added {path_of(type_).name}: read it before you commit it\n")
    if not CHAIN.exists():
        CHAIN.write_text(_chain(), encoding="utf-8")
        sys.stdout.write(f"added {CHAIN.name}\n")


def _chain() -> str:
    """Two streams, told by turns, with a seal after every fourth event."""
    links: list[dict[str, object]] = []
    heads: dict[str, tuple[int, bytes]] = {}
    seals: list[dict[str, object]] = []
    sealed, hashes = NO_HASH, list[bytes]()
    stories = [(type_, example) for type_, example in all_examples() if type_.startswith(("job.", "attempt."))]
    for position, (type_, example) in enumerate(sorted(stories, key=lambda one: one[1].hash), start=1):
        category = type_.partition(".")[0]
        version, previous = heads.get(category, (0, NO_HASH))
        row = row_of(type_, example.data.encode(), position=position, version=version + 1)
        heads[category] = (version + 1, event_hash(previous, row))
        hashes.append(heads[category][1])
        links.append({"type": type_, "example": example.name, "version": version + 1, "hash": hashes[-1].hex()})
        if position % 4 == 0:
            sealed = seal_hash(sealed, position - 3, position, hashes[-4:])
            seals.append({"from": position - 3, "to": position, "hash": sealed.hex()})
    return json.dumps({"links": links, "seals": seals}, indent=1) + "\n"


if __name__ == "__main__":
    main()
