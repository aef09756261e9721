"""An upcast turns what an old version stored into what this one means, wherever stored events are read."""

import json
from collections.abc import Callable
from uuid import UUID

import msgspec
import pytest

from services.gateway.domain.views import fold_job
from services.scheduler.handlers import JOB
from shared.contracts import catalogue
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.envelope import RecordedEvent
from shared.contracts.upcasts import UPCASTS, upcast
from shared.decider import fold
from shared.eventstore.rows import recorded
from tests.golden.golden_events import path_of, read_examples, row_of
from tests.history.stored_log import HISTORIES, envelopes, read_expected, read_log

OLD, OLDER = "job.cancelled.v0", "job.ended.v0"


def from_v0(data: bytes) -> tuple[str, bytes]:
    """`job.cancelled.v0` said `why` and gave the moment as seconds: the meaning is the same, the shape is not."""
    old = json.loads(data)
    moment = msgspec.json.decode(msgspec.json.encode(old["moment"]), type=str)
    new = {"type": "job.cancelled.v1", "cancelled_at": moment, "reason": old["why"]}
    return "job.cancelled.v1", msgspec.json.encode(new)


def from_older(data: bytes) -> tuple[str, bytes]:
    """`job.ended.v0` said `how`, of which only cancelling was ever stored."""
    old = json.loads(data)
    return OLD, msgspec.json.encode({"type": OLD, "moment": old["moment"], "why": old["how"]})


def as_v0(row: RecordedEvent) -> RecordedEvent:
    new = json.loads(bytes(row.data))
    data = msgspec.json.encode({"type": OLD, "moment": new["cancelled_at"], "why": new["reason"]})
    return msgspec.structs.replace(row, type=OLD, data=msgspec.Raw(data))


def as_older(row: RecordedEvent) -> RecordedEvent:
    new = json.loads(bytes(row.data))
    data = msgspec.json.encode({"type": OLDER, "moment": new["cancelled_at"], "how": new["reason"]})
    return msgspec.structs.replace(row, type=OLDER, data=msgspec.Raw(data))


@pytest.mark.parametrize("aged", [as_v0, as_older], ids=["one_step", "two_steps"])
def test_a_history_of_an_older_version_folds_as_it_did_with_its_upcasts(
    aged: Callable[[RecordedEvent], RecordedEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = HISTORIES / "road.jsonl"
    log, stories = envelopes(read_log(path)), read_expected(path).stories
    then = [aged(row) if row.type == "job.cancelled.v1" else row for row in log]
    job_id: UUID = stories["cancelled_while_training"]
    story = [row for row in then if row.correlation_id == job_id]
    stream = [row for row in story if row.category == "job"]
    without = fold_job(job_id, story)
    assert without.job.phase == "running", "the end is of a type that nobody knows yet"
    monkeypatch.setitem(UPCASTS, OLD, from_v0)
    monkeypatch.setitem(UPCASTS, OLDER, from_older)
    assert [row.type for row in then if catalogue.decode(row) is None] == []
    now = [row for row in log if row.correlation_id == job_id]
    assert fold_job(job_id, story) == fold_job(job_id, now)
    assert fold(JOB, stream) == fold(JOB, [row for row in now if row.category == "job"])


def test_a_current_type_is_passed_through_byte_for_byte() -> None:
    for type_ in EVENT_TYPES:
        assert upcast(type_, b'{"x": 1}') == (type_, b'{"x": 1}')


def test_every_upcast_of_the_catalogue_reaches_a_type_of_today() -> None:
    """Each stored form that is no longer written has golden examples, and every one of them is still read."""
    for type_ in UPCASTS:
        assert type_ not in EVENT_TYPES, f"{type_} is written today: an upcast would never let it be read"
        for example in read_examples(path_of(type_)):
            row = row_of(type_, example.data.encode())
            assert catalogue.decode(recorded(msgspec.structs.asdict(row))) is not None
