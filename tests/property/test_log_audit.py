"""Whatever is done to a chained and sealed log, the auditor names it; and it never cries over an intact one."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shared.eventstore.auditor import Auditor, Fault, Seal
from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash, seal_hash

SEALED_BY = 4
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def a_log(streams: list[int]) -> list[StoredEvent]:
    """One event for each entry, appended to the stream of that number."""
    heads: dict[str, StoredEvent] = {}
    log: list[StoredEvent] = []
    for position, number in enumerate(streams, start=1):
        stream = f"job-{number}"
        before = heads.get(stream)
        event = StoredEvent(
            global_position=position,
            event_id=UUID(int=position),
            stream=stream,
            stream_version=before.stream_version + 1 if before else 1,
            type="job.queued.v1",
            data=b'{"n": %d}' % position,
            meta=b"{}",
            correlation_id=UUID(int=number),
            recorded_at=BEGAN + timedelta(seconds=position),
            hash=b"",
        )
        heads[stream] = chained(event, before.hash if before else NO_HASH)
        log.append(heads[stream])
    return log


def chained(event: StoredEvent, previous: bytes) -> StoredEvent:
    return msgspec.structs.replace(event, hash=event_hash(previous, event))


def sealed(log: list[StoredEvent], *, every: int = SEALED_BY) -> list[Seal]:
    seals: list[Seal] = []
    for start in range(0, len(log) - len(log) % every, every):
        part = log[start : start + every]
        first, last = part[0].global_position, part[-1].global_position
        hash_ = seal_hash(seals[-1].hash if seals else NO_HASH, first, last, (event.hash for event in part))
        seals.append(Seal(from_position=first, to_position=last, event_count=len(part), hash=hash_))
    return seals


def audit(log: list[StoredEvent], seals: list[Seal], published: int = 0) -> list[Fault]:
    auditor = Auditor(seals, published)
    for event in sorted(log, key=lambda event: event.global_position):
        auditor.take(event)
    return auditor.finish()


def positions(faults: list[Fault], *kinds: str) -> set[int | None]:
    return {fault.position for fault in faults if fault.kind in kinds}


LOGS = st.lists(st.integers(1, 4), min_size=1, max_size=30).map(a_log)


@st.composite
def logs_and_index(draw: st.DrawFn) -> tuple[list[StoredEvent], int]:
    log = draw(LOGS)
    return log, draw(st.integers(0, len(log) - 1))


@given(LOGS)
def test_intact_log_has_no_faults(log: list[StoredEvent]) -> None:
    assert audit(log, sealed(log), published=len(log)) == []
    assert audit(log, []) == []


@given(logs_and_index(), st.sampled_from(["data", "meta", "type", "event_id", "correlation_id", "recorded_at", "hash"]))
def test_any_changed_field_is_named(case: tuple[list[StoredEvent], int], field: str) -> None:
    log, index = case
    seals = sealed(log)
    changes = {
        "data": b"{}",
        "meta": b'{"actor":"me"}',
        "type": "job.failed.v1",
        "event_id": UUID(int=999),
        "correlation_id": UUID(int=999),
        "recorded_at": BEGAN,
        "hash": b"x" * 32,
    }
    log[index] = msgspec.structs.replace(log[index], **{field: changes[field]})
    faults = audit(log, seals)
    assert index + 1 in positions(faults, "changed", "inserted")
    is_sealed = index < len(seals) * SEALED_BY
    if field != "hash" and is_sealed:
        assert [(fault.kind, fault.position) for fault in faults] == [("changed", index + 1)]


@given(logs_and_index())
def test_dropped_event_is_named(case: tuple[list[StoredEvent], int]) -> None:
    log, index = case
    seals = sealed(log)
    dropped = log.pop(index)
    faults = audit(log, seals, published=dropped.global_position)
    if index == len(log):
        assert index + 1 in positions(faults, "cut")
        return
    assert index + 1 in positions(faults, "dropped")
    has_successor = any(event.stream == dropped.stream for event in log[index:])
    if has_successor:
        (fault,) = [fault for fault in faults if fault.kind == "dropped"]
        assert (fault.position, fault.stream, fault.stream_version) == (
            index + 1,
            dropped.stream,
            dropped.stream_version,
        )


@given(st.lists(st.integers(1, 4), min_size=2, max_size=30).map(a_log), st.data())
def test_swapped_positions_are_named(log: list[StoredEvent], data: st.DataObject) -> None:
    seals = sealed(log)
    one = data.draw(st.integers(0, len(log) - 2))
    other = data.draw(st.integers(one + 1, len(log) - 1))
    first, second = log[one], log[other]
    log[one] = msgspec.structs.replace(first, global_position=second.global_position)
    log[other] = msgspec.structs.replace(second, global_position=first.global_position)
    named = positions(audit(log, seals), "swapped", "changed", "inserted")
    assert {first.global_position, second.global_position} & named


@given(st.lists(st.integers(1, 4), min_size=2, max_size=30).map(a_log), st.data())
def test_exchanged_contents_are_named_as_a_swap(log: list[StoredEvent], data: st.DataObject) -> None:
    seals = sealed(log)
    one = data.draw(st.integers(0, len(log) - 2))
    other = data.draw(st.integers(one + 1, len(log) - 1))
    first, second = log[one], log[other]
    log[one] = msgspec.structs.replace(first, data=second.data)
    log[other] = msgspec.structs.replace(second, data=first.data)
    assert positions(audit(log, seals), "swapped") == {one + 1, other + 1}


@given(LOGS)
def test_event_put_behind_the_log_by_hand_is_named(log: list[StoredEvent]) -> None:
    forged = msgspec.structs.replace(
        log[-1], global_position=len(log) + 1, stream_version=log[-1].stream_version + 1, hash=b"f" * 32
    )
    faults = audit([*log, forged], sealed(log))
    assert [(fault.kind, fault.position) for fault in faults] == [("inserted", len(log) + 1)]


@given(st.lists(st.integers(1, 2), min_size=SEALED_BY, max_size=30).map(a_log), st.data())
def test_stream_rewritten_with_valid_hashes_breaks_a_seal(log: list[StoredEvent], data: st.DataObject) -> None:
    seals = sealed(log)
    index = data.draw(st.integers(0, len(seals) * SEALED_BY - 1))
    stream = log[index].stream
    log[index] = msgspec.structs.replace(log[index], data=b'{"forged": true}')
    previous = NO_HASH
    for place, event in enumerate(log):
        if event.stream == stream:
            log[place] = chained(event, previous)
            previous = log[place].hash
    broken = positions(audit(log, seals), "seal_broken")
    assert index // SEALED_BY * SEALED_BY + 1 in broken


@given(LOGS, st.data())
def test_removed_or_forged_seal_is_named(log: list[StoredEvent], data: st.DataObject) -> None:
    seals = sealed(log)
    if len(seals) < 2:
        return
    index = data.draw(st.integers(0, len(seals) - 2))
    removed = seals[:index] + seals[index + 1 :]
    assert positions(audit(log, removed), "seal_broken") == {seals[index + 1].from_position}
    forged = [*seals[:index], msgspec.structs.replace(seals[index], hash=b"x" * 32), *seals[index + 1 :]]
    assert seals[index].from_position in positions(audit(log, forged), "seal_broken")


@given(LOGS, st.data())
def test_cut_tail_is_named_as_far_as_a_seal_or_the_relay_has_seen(log: list[StoredEvent], data: st.DataObject) -> None:
    seals = sealed(log)
    kept = data.draw(st.integers(0, len(log) - 1))
    published = data.draw(st.integers(0, len(log)))
    seen = max(published, len(seals) * SEALED_BY)
    faults = audit(log[:kept], seals, published)
    assert positions(faults, "cut") == ({kept + 1} if seen > kept else set())
