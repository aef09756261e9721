"""What any version stored, this version reads: same meaning, same bytes, same hashes."""

import json

import msgspec
import pytest

from shared.contracts import catalogue
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.upcasts import UPCASTS, upcast
from shared.eventstore.auditor import Auditor, Seal
from shared.eventstore.hashing import NO_HASH, event_hash
from shared.eventstore.rows import recorded
from tests.golden.golden_events import (
    CHAIN,
    Example,
    all_examples,
    missing_types,
    only_known_then,
    read_examples,
    row_of,
)
from tests.golden.golden_events import path_of as golden_path

EXAMPLES = [pytest.param(type_, example, id=f"{type_}-{example.name}") for type_, example in all_examples()]


def test_every_stored_event_type_has_a_golden_file() -> None:
    assert missing_types() == [], "python -m tests.golden.add writes them; read them before you commit them"


@pytest.mark.parametrize("type_", sorted(EVENT_TYPES))
def test_every_type_has_its_fullest_and_its_barest_event(type_: str) -> None:
    names = [example.name for example in read_examples(golden_path(type_))]
    assert {"fullest", "barest"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("type_", "example"), EXAMPLES)
def test_golden_event_decodes_and_encodes_to_the_same_bytes(type_: str, example: Example) -> None:
    data = example.data.encode()
    event = catalogue.decode(recorded(msgspec.structs.asdict(row_of(type_, data))))
    assert event is not None
    newest, then = upcast(type_, data)
    assert catalogue.event_type(type(event)) == newest
    now = catalogue.encode(event)
    if now != then:  # fields that were added since are at their defaults; all else is as it was, in its order
        assert msgspec.json.encode(only_known_then(json.loads(now), json.loads(then))) == then


@pytest.mark.parametrize(("type_", "example"), EXAMPLES)
def test_golden_event_has_the_hash_it_had(type_: str, example: Example) -> None:
    assert event_hash(NO_HASH, row_of(type_, example.data.encode())).hex() == example.hash


def test_golden_chain_and_its_seals_are_as_they_were() -> None:
    golden = json.loads(CHAIN.read_text(encoding="utf-8"))
    stored = {(type_, example.name): example.data.encode() for type_, example in all_examples()}
    seals = [
        Seal(from_position=seal["from"], to_position=seal["to"], event_count=4, hash=bytes.fromhex(seal["hash"]))
        for seal in golden["seals"]
    ]
    auditor = Auditor(seals, len(golden["links"]))
    heads: dict[str, bytes] = {}
    for position, link in enumerate(golden["links"], start=1):
        type_ = link["type"]
        row = row_of(type_, stored[type_, link["example"]], position=position, version=link["version"])
        heads[row.stream] = event_hash(heads.get(row.stream, NO_HASH), row)
        assert heads[row.stream].hex() == link["hash"]
        auditor.take(msgspec.structs.replace(row, hash=bytes.fromhex(link["hash"])))
    assert len(heads) == 2
    assert auditor.finish() == []


def test_no_upcast_starts_from_a_type_without_a_golden_file() -> None:
    assert [type_ for type_ in UPCASTS if not golden_path(type_).exists()] == []
