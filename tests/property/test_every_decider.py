"""What holds for each decider alike: folds take anything, ends are final, decisions depend on nothing else."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing.domain import account
from services.gateway.domain.job_body import job_body
from services.gateway.domain.views import fold_job
from services.provider_bridge.attempt_stream import ATTEMPT
from services.provider_bridge.domain.attempt_states import Ended as AttemptEnded
from services.provider_bridge.provider_stream import PROVIDER
from services.provider_bridge.worker_stream import WORKER
from services.scheduler.domain.job_state import Ended as JobEnded
from services.scheduler.handlers import JOB
from services.scheduler.projections.queue import QueueRow, evolve_row
from services.storage.domain.dataset import DatasetState, PackResult
from services.storage.handlers import ARTIFACT_DECIDER
from services.storage.packing import DECIDER as DATASET
from shared.contracts import catalogue
from shared.contracts.artifact import ArtifactStored, DatasetsPacked, DatasetsRefused
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import Event, JobCancelled, JobCompleted, JobFailed
from shared.decider import Decider, fold
from shared.problems import Rejected
from tests.property import (
    test_attempt_properties,
    test_job_decider_properties,
    test_ledger_properties,
    test_provider_properties,
    test_worker_properties,
)
from tests.support.contract_structs import BEGAN, IDS, any_of
from tests.support.depth import examples

ACCOUNT: Decider[account.Account, account.AccountCommand] = Decider(
    initial=account.Unopened(), evolve=account.evolve, decide=account.decide
)
DECIDERS: dict[str, Decider[Any, Any]] = {
    "job": JOB,
    "attempt": ATTEMPT,
    "account": ACCOUNT,
    "dataset": DATASET,
    "artifact": ARTIFACT_DECIDER,
    "provider": PROVIDER,
    "worker": WORKER,
}
RESULTS: st.SearchStrategy[PackResult] = any_of(DatasetsPacked) | any_of(DatasetsRefused)
UPLOADS = st.builds(
    msgspec.structs.replace,
    any_of(ArtifactStored),
    job_id=st.sampled_from(IDS[:2]),
    sha256=st.sampled_from(["a", "b"]),
)
COMMANDS: dict[str, st.SearchStrategy[list[Any]]] = {
    "job": test_job_decider_properties.stories().map(list),
    "attempt": test_attempt_properties.commands.map(list),
    "account": test_ledger_properties.STORIES.map(list),
    "dataset": st.lists(RESULTS, max_size=4),
    "artifact": st.lists(UPLOADS, max_size=6),
    "provider": st.lists(test_provider_properties.commands, max_size=12),
    "worker": test_worker_properties.commands.map(list),
}
EVENTS = st.sampled_from(list(EVENT_TYPES.values())).flatmap(any_of)
OF_CATEGORY = {
    category: st.sampled_from([kind for name, kind in EVENT_TYPES.items() if name.startswith(f"{category}.")]).flatmap(
        any_of
    )
    for category in DECIDERS
}
ENDED_AT = ("completed_at", "failed_at", "cancelled_at")
EACH = pytest.mark.parametrize("name", sorted(DECIDERS))


def decided(decider: Decider[Any, Any], state: Any, command: Any) -> Sequence[Event] | tuple[str, str]:
    """The events, or the refusal's code and words."""
    try:
        return list(decider.decide(state, command))
    except Rejected as refused:
        return refused.code, refused.detail


def lived(decider: Decider[Any, Any], commands: Sequence[Any]) -> list[Event]:
    """The history that a sequence of commands leaves, refusals passed over."""
    state, history = decider.initial, list[Event]()
    for command in commands:
        answer = decided(decider, state, command)
        for event in answer if isinstance(answer, list) else []:
            state = decider.evolve(state, event)
            history.append(event)
    return history


def folded(decider: Decider[Any, Any], events: Sequence[Event], state: Any = None) -> Any:
    state = decider.initial if state is None else state
    for event in events:
        state = decider.evolve(state, event)
    return state


def as_rows(category: str, entries: Sequence[Event | tuple[str, bytes]]) -> list[RecordedEvent]:
    """Events, and payloads of types that nobody knows, as one stream of the log."""
    rows: list[RecordedEvent] = []
    for version, entry in enumerate(entries, start=1):
        type_, data = (
            entry if isinstance(entry, tuple) else (catalogue.event_type(type(entry)), catalogue.encode(entry))
        )
        rows.append(
            RecordedEvent(
                global_position=version,
                event_id=UUID(int=version),
                stream=f"{category}-{IDS[0]}",
                stream_version=version,
                type=type_,
                data=msgspec.Raw(data),
                meta=EventMetadata(),
                correlation_id=IDS[0],
                recorded_at=BEGAN,
                hash=b"",
            )
        )
    return rows


@EACH
@examples(25)
@given(data=st.data())
def test_any_event_folds_in_any_state(name: str, data: st.DataObject) -> None:
    decider = DECIDERS[name]
    history = lived(decider, data.draw(COMMANDS[name]))
    reached = folded(decider, history[: data.draw(st.integers(0, len(history)))])
    noise = data.draw(st.lists(OF_CATEGORY[name], max_size=6))
    assert isinstance(folded(decider, noise, reached), msgspec.Struct)


@EACH
@examples(15)
@given(data=st.data())
def test_events_of_other_categories_change_nothing(name: str, data: st.DataObject) -> None:
    decider = DECIDERS[name]
    reached = folded(decider, lived(decider, data.draw(COMMANDS[name])))
    for event in data.draw(st.lists(EVENTS, max_size=4)):
        if not catalogue.event_type(type(event)).startswith(f"{name}."):
            assert decider.evolve(reached, event) == reached


@EACH
@examples(25)
@given(data=st.data())
def test_deciding_depends_on_state_and_command_alone(name: str, data: st.DataObject) -> None:
    decider = DECIDERS[name]
    *before, last = data.draw(COMMANDS[name].filter(bool))
    history = lived(decider, before)
    assert lived(decider, before) == history
    state = folded(decider, history)
    first = decided(decider, state, last)
    assert decided(decider, state, last) == first
    assert state == folded(decider, history)


@EACH
@examples(15)
@given(data=st.data())
def test_types_that_nobody_knows_are_passed_over_by_folds(name: str, data: st.DataObject) -> None:
    decider = DECIDERS[name]
    entries: list[Event | tuple[str, bytes]] = list(lived(decider, data.draw(COMMANDS[name])))
    expected = fold(decider, as_rows(name, entries))
    for place in data.draw(st.lists(st.integers(0, len(entries)), max_size=4)):
        entries.insert(place, (f"{name}.from_the_future.v7", data.draw(st.binary(max_size=9))))
    assert fold(decider, as_rows(name, entries)) == expected


@EACH
@examples(25)
@given(data=st.data())
def test_a_command_that_was_just_carried_out_adds_nothing(name: str, data: st.DataObject) -> None:
    decider = DECIDERS[name]
    state = decider.initial
    for command in data.draw(COMMANDS[name]):
        events = decided(decider, state, command)
        if not isinstance(events, list) or not events:
            continue
        state = folded(decider, events, state)
        again = decided(decider, state, command)
        assert again == [] or isinstance(again, tuple), again


# ---- ends ------------------------------------------------------------------------------------------------------------


@examples(60)
@given(data=st.data())
def test_no_event_at_all_moves_an_ended_job(data: st.DataObject) -> None:
    history = lived(JOB, data.draw(COMMANDS["job"]))
    end = data.draw(st.sampled_from([JobCompleted, JobFailed, JobCancelled]).flatmap(any_of))
    state = folded(JOB, [*history, end])
    if not isinstance(state, JobEnded):
        assert state == JOB.initial
        return
    after = folded(JOB, data.draw(st.lists(OF_CATEGORY["job"], max_size=8)), state)
    assert (type(after), after.outcome, after.order) == (JobEnded, state.outcome, state.order)
    assert after.seen >= state.seen


@examples(60)
@given(data=st.data())
def test_no_event_at_all_moves_an_ended_attempt(data: st.DataObject) -> None:
    state = folded(ATTEMPT, lived(ATTEMPT, data.draw(COMMANDS["attempt"])))
    for event in data.draw(st.lists(OF_CATEGORY["attempt"], max_size=12)):
        before, state = state, ATTEMPT.evolve(state, event)
        if isinstance(before, AttemptEnded):
            assert isinstance(state, AttemptEnded)
            told = (state.outcome, state.ended_at, state.by_report, state.run.request, type(state.run))
            assert told == (before.outcome, before.ended_at, before.by_report, before.run.request, type(before.run))
            assert state.late_types >= before.late_types
            assert state.is_released >= before.is_released


@examples(40)
@given(before=st.lists(RESULTS, min_size=1, max_size=3), after=st.lists(EVENTS, max_size=4))
def test_the_first_result_of_packing_is_the_only_one(before: list[PackResult], after: list[Event]) -> None:
    history = lived(DATASET, before)
    assert history == before[:1]
    assert folded(DATASET, [*history, *after]) == DatasetState(result=before[0])
    assert lived(DATASET, [*before, *before]) == history


@examples(60)
@given(COMMANDS["account"], COMMANDS["account"])
def test_what_a_settled_job_cost_and_a_refused_one_was_told_never_changes(
    before: list[account.AccountCommand], after: list[account.AccountCommand]
) -> None:
    def final(state: account.Account) -> dict[UUID, Any]:
        jobs = state.jobs.items() if isinstance(state, account.Open) else ()
        settled = {job: money.captured_micro_usd for job, money in jobs if isinstance(money, account.Settled)}
        return settled | {job: money for job, money in jobs if isinstance(money, account.Refused)}

    middle = final(folded(ACCOUNT, lived(ACCOUNT, before)))
    end = final(folded(ACCOUNT, lived(ACCOUNT, [*before, *after])))
    assert {job: end.get(job) for job in middle} == middle


@examples(60)
@given(COMMANDS["artifact"])
def test_a_key_names_what_was_stored_last_and_stays_with_its_first_job(uploads: list[ArtifactStored]) -> None:
    """The oracle: of the first job's uploads, each that differs from the one before."""
    expected: list[ArtifactStored] = []
    for upload in uploads:
        if not expected or (upload.job_id == expected[0].job_id and upload.sha256 != expected[-1].sha256):
            expected.append(upload)
    history = lived(ARTIFACT_DECIDER, uploads)
    assert history == expected
    state = folded(ARTIFACT_DECIDER, history)
    assert (state.current, state.version) == (expected[-1] if expected else None, len(expected))


# ---- folds beside the deciders ---------------------------------------------------------------------------------------


@examples(40)
@given(st.lists(EVENTS, max_size=12))
def test_any_events_in_any_order_fold_into_the_gateways_view(events: list[Event]) -> None:
    rows = [
        msgspec.structs.replace(row, stream=f"{row.type.partition('.')[0]}-{IDS[0]}") for row in as_rows("job", events)
    ]
    view = fold_job(IDS[0], rows)
    if view.exists:
        body = job_body(view, now=BEGAN, queue_position=None)
        assert msgspec.json.encode(body)
    if view.job.terminal:
        assert view.job.ended_at in {
            getattr(event, name) for event in events for name in ENDED_AT if hasattr(event, name)
        }


@examples(60)
@given(st.lists(OF_CATEGORY["job"], max_size=12))
def test_an_ended_job_has_no_place_in_the_queue(events: list[Event]) -> None:
    row: QueueRow | None = None
    for position, event in enumerate(events, start=1):
        row = evolve_row(row, event, IDS[0], position)
        if isinstance(event, JobCompleted | JobFailed | JobCancelled):
            assert row is None
