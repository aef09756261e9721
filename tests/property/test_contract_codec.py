"""Whatever an event or a command says, its JSON says the same; older and newer readers find what they know."""

import json
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from shared.contracts import account, admin, artifact, attempt, catalogue, job, provider, whatif, worker
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata, RecordedEvent
from shared.contracts.job import Command, Event
from shared.contracts.run import ReportAck, ReportLine, RunSpec
from shared.eventstore.rows import encode_meta
from tests.support.contract_structs import BEGAN, IDS, all_commands, any_of, fullest, is_strict
from tests.support.depth import examples

ANYTHING = inspect.AnyType()
CONTRACTS = (account, admin, artifact, attempt, job, provider, whatif, worker)
"""The modules that hold commands: importing them is what makes `all_commands` see them."""

EVENTS = [pytest.param(kind, id=name) for name, kind in sorted(EVENT_TYPES.items())]
WIRE: list[type[msgspec.Struct]] = [*all_commands(), EventMetadata, RunSpec, ReportLine, ReportAck, CommandReply]
WIRED = [pytest.param(kind, id=kind.__name__) for kind in WIRE]
ALL = [*EVENTS, *WIRED]
OPEN = [*EVENTS, *(pytest.param(kind, id=kind.__name__) for kind in WIRE if not is_strict(kind))]
"""What passes over members that it does not know: all but the questions that hold a file which a person wrote."""


def as_stored(event: Event, type_: str | None = None) -> RecordedEvent:
    """An event as it comes back from the log."""
    data = catalogue.encode(event)
    return a_row(type_ or catalogue.event_type(type(event)), data)


def a_row(type_: str, data: bytes) -> RecordedEvent:
    return RecordedEvent(
        global_position=1,
        event_id=IDS[0],
        stream=f"{type_.partition('.')[0]}-{IDS[0]}",
        stream_version=1,
        type=type_,
        data=msgspec.Raw(data),
        meta=EventMetadata(),
        correlation_id=IDS[0],
        recorded_at=BEGAN,
        hash=b"",
    )


def decoded(kind: type[msgspec.Struct], data: bytes) -> msgspec.Struct:
    return msgspec.json.decode(data, type=kind)


def with_strangers(value: Any, info: inspect.Type) -> Any:
    """The same JSON with a member that nobody knows in every object, but for those that hold texts alone (labels)."""
    kinds = info.types if isinstance(info, inspect.UnionType) else (info,)
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        struct = next((kind for kind in kinds if isinstance(kind, inspect.StructType)), None)
        if struct is not None:
            types = {field.encode_name: field.type for field in struct.fields}
            known = {name: with_strangers(inner, types.get(name, ANYTHING)) for name, inner in members.items()}
            return {**known, "\x7fstranger": [{"a": 1}]}
        below = next((kind.value_type for kind in kinds if isinstance(kind, inspect.DictType)), ANYTHING)
        if isinstance(below, inspect.StrType):
            return members
        known = {name: with_strangers(inner, below) for name, inner in members.items()}
        return {**known, "\x7fstranger": [{"a": 1}]}
    if isinstance(value, list):
        item = next((kind.item_type for kind in kinds if isinstance(kind, inspect.ListType)), ANYTHING)
        return [with_strangers(inner, item) for inner in cast("list[Any]", value)]
    return value


def without_strangers(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: without_strangers(inner) for name, inner in members.items() if name != "\x7fstranger"}
    if isinstance(value, list):
        return [without_strangers(inner) for inner in cast("list[Any]", value)]
    return value


@pytest.mark.parametrize("kind", EVENTS)
@examples(15)
@given(data=st.data())
def test_encode_decode_is_identity_for_every_event(kind: type[Event], data: st.DataObject) -> None:
    event = data.draw(any_of(kind))
    stored = as_stored(event)
    assert catalogue.decode(stored) == event
    assert catalogue.encode(cast("Event", catalogue.decode(stored))) == bytes(stored.data)


@pytest.mark.parametrize("kind", WIRED)
@examples(6)
@given(data=st.data())
def test_encode_decode_is_identity_for_every_struct_on_the_wire(
    kind: type[msgspec.Struct], data: st.DataObject
) -> None:
    sent = data.draw(any_of(kind))
    assert decoded(kind, msgspec.json.encode(sent)) == sent


@pytest.mark.parametrize("kind", OPEN)
@examples(6)
@given(data=st.data())
def test_members_that_only_a_newer_writer_knows_are_passed_over(
    kind: type[msgspec.Struct], data: st.DataObject
) -> None:
    sent = data.draw(any_of(kind))
    newer = json.dumps(with_strangers(json.loads(msgspec.json.encode(sent)), inspect.type_info(kind))).encode()
    read = decoded(kind, newer)
    assert without_strangers(msgspec.to_builtins(read)) == msgspec.to_builtins(sent)


@pytest.mark.parametrize("kind", ALL)
@examples(6)
@given(data=st.data())
def test_members_that_an_older_writer_did_not_know_have_their_defaults(
    kind: type[msgspec.Struct], data: st.DataObject
) -> None:
    sent = data.draw(any_of(kind))
    optional = [field for field in msgspec.structs.fields(kind) if not field.required]
    older = json.loads(msgspec.json.encode(sent))
    for field in optional:
        older.pop(field.encode_name, None)
    required = {field.name: getattr(sent, field.name) for field in msgspec.structs.fields(kind) if field.required}
    assert decoded(kind, json.dumps(older).encode()) == kind(**required)


@examples(50)
@given(data=st.data())
def test_an_event_in_its_envelope_is_the_same_after_the_bus(data: st.DataObject) -> None:
    event = data.draw(any_of(data.draw(st.sampled_from(list(EVENT_TYPES.values())))))
    sent = msgspec.structs.replace(as_stored(event), meta=data.draw(any_of(EventMetadata)), hash=b"\x00\xff" * 16)
    received = msgspec.json.decode(msgspec.json.encode(sent), type=RecordedEvent)
    assert bytes(received.data) == bytes(sent.data)
    assert catalogue.decode(received) == event
    assert msgspec.structs.replace(received, data=sent.data) == sent


@examples(50)
@given(data=st.data())
def test_a_command_in_its_envelope_is_the_same_after_the_bus(data: st.DataObject) -> None:
    command: Command = data.draw(any_of(data.draw(st.sampled_from(all_commands()))))
    envelope = CommandEnvelope(
        command_id=IDS[0], correlation_id=IDS[1], payload=msgspec.Raw(msgspec.json.encode(command))
    )
    received = msgspec.json.decode(msgspec.json.encode(envelope), type=CommandEnvelope)
    assert decoded(type(command), bytes(received.payload)) == command


@examples(50)
@given(any_of(EventMetadata))
def test_metadata_as_stored_says_what_it_said(meta: EventMetadata) -> None:
    assert msgspec.json.decode(encode_meta(meta), type=EventMetadata) == meta


@examples(50)
@given(st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,8}\.v[0-9]", fullmatch=True), st.binary(max_size=20))
def test_a_type_that_nobody_knows_is_none_whatever_it_holds(type_: str, data: bytes) -> None:
    assert (catalogue.decode(a_row(type_, data)) is None) or type_ in EVENT_TYPES


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=2, max_size=6))
@examples(30)
def test_a_dict_is_stored_in_one_order_whatever_order_it_was_made_in(config: dict[str, int]) -> None:
    kind = job.JobSubmitted
    one = msgspec.structs.replace(fullest(kind), config=config)
    other = msgspec.structs.replace(fullest(kind), config=dict(reversed(config.items())))
    assert catalogue.encode(one) == catalogue.encode(other)


def test_every_command_module_is_covered() -> None:
    homes = {module.__name__ for module in CONTRACTS}
    assert {kind.__module__ for kind in all_commands()} == homes
    assert len(all_commands()) >= 15


def test_only_the_questions_of_what_if_are_strict() -> None:
    assert {kind.__name__ for kind in WIRE if is_strict(kind)} == {"SimulatePolicy", "PriceUsage"}
    assert not [name for name, kind in EVENT_TYPES.items() if is_strict(kind)]
