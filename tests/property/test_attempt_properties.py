"""Whatever is asked in whatever order, an attempt's history stays true to its rules."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.provider_bridge.attempt_stream import ATTEMPT
from services.provider_bridge.domain.attempt_commands import (
    AttemptCommand,
    Cancel,
    Exited,
    Fenced,
    Gone,
    IntendStart,
    NeverStarted,
    NoteWebhook,
    RecordAccepted,
    RecordObserved,
    RecordReleased,
    RecordStartRefused,
    RecordWord,
    Report,
    Request,
    StillRunning,
    TakeLease,
)
from services.provider_bridge.domain.attempt_states import Absent, AttemptState, Ended, Forestalled, run_of
from shared.contracts import attempt as events
from shared.contracts.job import Event
from shared.problems import Rejected

ATTEMPT_ID = UUID("01939b70-0000-7000-8000-000000000001")
T0 = datetime(2026, 11, 22, tzinfo=UTC)
TERMINAL = events.AttemptSucceeded | events.AttemptFailed | events.AttemptCancelled | events.AttemptLost

moments = st.integers(0, 1000).map(lambda seconds: T0 + timedelta(seconds=seconds))
epochs = st.integers(0, 4)


def _request(at: datetime, metering: Literal["trainer", "machine"] = "trainer") -> Request:
    command = events.RequestAttempt(
        attempt_id=ATTEMPT_ID,
        job_id=ATTEMPT_ID,
        attempt_number=1,
        provider="local",
        config={},
        dataloader=[],
        datasets=[],
        resume=None,
        price_micro_usd_per_hour=0,
    )
    return Request(
        command=command, quote=events.Quote(hardware="local", price_micro_usd_per_hour=0, metering=metering), at=at
    )


def _cancel_named() -> Cancel:
    return Cancel(command=events.CancelAttempt(attempt_id=ATTEMPT_ID, reason="r", job_id=ATTEMPT_ID), at=T0)


def _report(type_: str, step: int, at: datetime) -> Report:
    data = {"step": step, "files": list[object]()}
    return Report(command=events.ReportMilestone(attempt_id=ATTEMPT_ID, seq=1, report_type=type_, data=data, at=at))


requests = st.builds(_request, moments, st.sampled_from(["trainer", "machine"]))
cancels = st.builds(
    Cancel,
    command=st.sampled_from([None, ATTEMPT_ID]).map(
        lambda job_id: events.CancelAttempt(attempt_id=ATTEMPT_ID, reason="r", job_id=job_id)
    ),
    at=moments,
)
reports = st.builds(
    _report,
    st.sampled_from(["hello", "checkpoint", "done", "failed", "nonsense"]),
    st.integers(0, 2),
    moments,
)
observations = st.one_of(
    st.just(StillRunning()),
    st.just(NeverStarted()),
    st.just(Gone(message="m")),
    st.builds(Exited, code=st.integers(-64, 255), ended_at=moments),
)
fenced = st.one_of(
    st.builds(TakeLease, epoch=epochs, at=moments, owner=st.sampled_from("ab")),
    st.builds(IntendStart, epoch=epochs, at=moments, token_sha256=st.sampled_from(["x", "y"])),
    st.builds(RecordAccepted, epoch=epochs, at=moments, provider_ref=st.sampled_from(["p", "q"])),
    st.builds(RecordStartRefused, epoch=epochs, at=moments, message=st.just("m"), advice=st.none()),
    st.builds(RecordObserved, epoch=epochs, at=moments, observation=observations),
    st.builds(RecordWord, epoch=epochs, at=moments, word=st.sampled_from("vw")),
    st.builds(
        RecordReleased,
        epoch=epochs,
        at=moments,
        provider_ref=st.none() | st.sampled_from(["p", "q"]),
        started_at=st.none() | moments,
        ended_at=moments,
        billed_s=st.none() | st.floats(0, 5000),
    ),
)
webhooks = st.builds(NoteWebhook, webhook_id=st.sampled_from(["w", "x"]), word=st.just("done"), at=moments)
commands = st.lists(st.one_of(requests, cancels, reports, webhooks, fenced, fenced), max_size=25)


def play(sequence: Sequence[AttemptCommand]) -> tuple[AttemptState, list[Event]]:
    """Decides each command in turn, refusals passed over: the state and the whole history."""
    state, history = ATTEMPT.initial, list[Event]()
    for command in sequence:
        try:
            decided = ATTEMPT.decide(state, command)
        except Rejected:
            continue
        for event in decided:
            state = ATTEMPT.evolve(state, event)
            history.append(event)
    return state, history


@settings(deadline=None)
@given(commands)
def test_any_sequence_of_commands_folds_and_ends_at_most_once(sequence: list[AttemptCommand]) -> None:
    state, history = play(sequence)
    ends = [event for event in history if isinstance(event, TERMINAL)]
    assert len(ends) == (1 if isinstance(state, Ended | Forestalled) else 0)
    assert all(event.billed_seconds >= 0 for event in ends)


@settings(deadline=None)
@given(commands, commands)
def test_an_ended_attempt_records_nothing_but_late_reports_once_per_type(
    before: list[AttemptCommand], after: list[AttemptCommand]
) -> None:
    state, history = play([*before, *after])
    end = next((i for i, event in enumerate(history) if isinstance(event, TERMINAL)), None)
    if end is None:
        assert not isinstance(state, Ended | Forestalled)
        return
    tail = history[end + 1 :]
    told = events.AttemptLateReport | events.AttemptWebhookReceived | events.AttemptWordUnknown
    release = events.AttemptLeased | events.AttemptAccepted | events.AttemptMachineReleased
    paid = isinstance(state, Ended) and state.run.request.quote.metering == "machine"
    assert all(isinstance(event, told) or (paid and isinstance(event, release)) for event in tail)
    types = [event.report_type for event in tail if isinstance(event, events.AttemptLateReport)]
    assert len(types) == len(set(types))


@settings(deadline=None)
@given(commands)
def test_deciding_the_same_command_again_adds_nothing(sequence: list[AttemptCommand]) -> None:
    state, _ = play(sequence)
    if not sequence:
        return
    try:
        repeated = ATTEMPT.decide(state, sequence[-1])
    except Rejected:
        return
    lone, _ = play(sequence[:-1])
    try:
        ATTEMPT.decide(lone, sequence[-1])
    except Rejected:
        return
    assert list(repeated) == []


@settings(deadline=None)
@given(commands, fenced)
def test_a_stale_epoch_is_refused_in_every_phase(sequence: list[AttemptCommand], command: Fenced) -> None:
    state, _ = play(sequence)
    if isinstance(state, Absent | Forestalled) or command.epoch >= run_of(state).epoch:
        return
    with pytest.raises(Rejected) as refused:
        ATTEMPT.decide(state, command)  # pyright: ignore[reportArgumentType]  # the strategy builds FencedCommands
    assert refused.value.code == "stale_epoch"


@settings(deadline=None)
@given(commands)
def test_epochs_only_rise_and_each_intends_at_most_one_start(sequence: list[AttemptCommand]) -> None:
    _, history = play(sequence)
    leases = [event.epoch for event in history if isinstance(event, events.AttemptLeased)]
    intents = [event.epoch for event in history if isinstance(event, events.AttemptStartIntended)]
    assert leases == sorted(set(leases))
    assert intents == sorted(set(intents))
    assert set(intents) <= set(leases)


@settings(deadline=None)
@given(commands)
def test_nothing_is_intended_after_a_cancel_request_or_an_acceptance(sequence: list[AttemptCommand]) -> None:
    _, history = play(sequence)
    kinds = [type(event) for event in history]
    for closing in (events.AttemptCancelRequested, events.AttemptAccepted, events.AttemptStarted):
        if closing in kinds:
            assert events.AttemptStartIntended not in kinds[kinds.index(closing) :]


@settings(deadline=None)
@given(st.permutations([_request(T0), _request(T0), _cancel_named(), _cancel_named()]), st.lists(fenced, max_size=12))
def test_request_and_cancel_in_any_order_end_cancelled_and_intend_nothing_after_the_cancel(
    asked: list[AttemptCommand], driven: list[AttemptCommand]
) -> None:
    """The bridge drives as it likes in between; once the cancel is there, what is known to be gone is over."""
    woven = [command for pair in itertools.zip_longest(asked, driven) for command in pair if command is not None]
    state, history = play(woven)
    kinds = [type(event) for event in history]
    cancel = kinds.index(events.AttemptCancelRequested) if events.AttemptCancelRequested in kinds else None
    if cancel is None:  # it had ended by itself before
        assert isinstance(state, Ended)
        return
    assert events.AttemptStartIntended not in kinds[cancel:]
    if events.AttemptStartIntended not in kinds:
        assert kinds[-1] is events.AttemptCancelled


@settings(deadline=None)
@given(commands)
def test_a_machine_is_released_once_after_the_end_and_only_where_machines_are_paid(
    sequence: list[AttemptCommand],
) -> None:
    state, history = play(sequence)
    released = [event for event in history if isinstance(event, events.AttemptMachineReleased)]
    assert len(released) <= 1
    for event in released:
        assert isinstance(state, Ended)
        assert state.run.request.quote.metering == "machine"
        assert not state.owes_release
        assert event.started_at <= event.ended_at
        assert event.seconds >= 0
        assert any(isinstance(earlier, TERMINAL) for earlier in history[: history.index(event)])


@settings(deadline=None)
@given(commands)
def test_words_and_webhooks_are_written_down_once_each(sequence: list[AttemptCommand]) -> None:
    _, history = play(sequence)
    words = [event.word for event in history if isinstance(event, events.AttemptWordUnknown)]
    hooks = [event.webhook_id for event in history if isinstance(event, events.AttemptWebhookReceived)]
    assert len(words) == len(set(words))
    assert len(hooks) == len(set(hooks))
