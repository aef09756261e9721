"""Past events, a command, then events or a code: the attempt's rules, phase by phase."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from services.provider_bridge.attempt_stream import ATTEMPT
from services.provider_bridge.domain.attempt_commands import (
    Ask,
    AttemptCommand,
    Cancel,
    Exited,
    Gone,
    IntendStart,
    NeverStarted,
    Observation,
    RecordAccepted,
    RecordObserved,
    RecordStartRefused,
    Report,
    Request,
    StillRunning,
    TakeLease,
)
from shared.contracts.attempt import (
    AskTrainer,
    AttemptAccepted,
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptCheckpointSaved,
    AttemptCommandAsked,
    AttemptFailed,
    AttemptGpuFaultReported,
    AttemptLateReport,
    AttemptLeased,
    AttemptLost,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
    CancelAttempt,
    Quote,
    ReportMilestone,
    RequestAttempt,
)
from shared.contracts.job import ArtifactRef, Checkpoint, CheckpointFile, Event
from shared.contracts.run import EXIT_CODES, ExitCode
from shared.problems import Rejected

ATTEMPT_ID = UUID("01939b70-0000-7000-8000-000000000001")
JOB_ID = UUID("01939b70-0000-7000-8000-000000000002")
T0 = datetime(2026, 11, 22, tzinfo=UTC)
DIGEST = "a" * 64
QUOTE = Quote(hardware="local", price_micro_usd_per_hour=0)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


REQUESTED = AttemptRequested(
    job_id=JOB_ID,
    attempt_number=1,
    provider="local",
    quote=QUOTE,
    config={},
    dataloader=[],
    datasets=[],
    resume=None,
    requested_at=T0,
)
LEASED = AttemptLeased(epoch=1, owner="a", leased_at=T0)
LEASED_2 = AttemptLeased(epoch=2, owner="b", leased_at=at(5))
INTENDED = AttemptStartIntended(epoch=1, token_sha256=DIGEST, intended_at=T0)
ACCEPTED = AttemptAccepted(epoch=1, provider_ref="ref", accepted_at=T0)
STARTED = AttemptStarted(started_at=at(10), device="cpu")
CANCEL_REQUESTED = AttemptCancelRequested(requested_at=at(20), reason="asked")
SUCCEEDED = AttemptSucceeded(steps=5, final_loss=0.5, artifacts=[], undelivered=[], ended_at=at(70), billed_seconds=60)
FAILED_BY_EXIT = AttemptFailed(
    kind="killed", message="m", advice=None, exit_code=-9, ended_at=at(70), billed_seconds=60
)

LEASED_PHASE = [REQUESTED, LEASED]
STARTING = [*LEASED_PHASE, INTENDED]
ACCEPTED_PHASE = [*STARTING, ACCEPTED]
RUNNING = [*ACCEPTED_PHASE, STARTED]


def when(history: Sequence[Event], command: AttemptCommand) -> list[Event]:
    state = ATTEMPT.initial
    for event in history:
        state = ATTEMPT.evolve(state, event)
    return list(ATTEMPT.decide(state, command))


def refusal(history: Sequence[Event], command: AttemptCommand) -> str:
    with pytest.raises(Rejected) as refused:
        when(history, command)
    return refused.value.code


def request() -> Request:
    asked = RequestAttempt(
        attempt_id=ATTEMPT_ID,
        job_id=JOB_ID,
        attempt_number=1,
        provider="local",
        config={},
        dataloader=[],
        datasets=[],
        resume=None,
        price_micro_usd_per_hour=0,
    )
    return Request(command=asked, quote=QUOTE, at=T0)


def cancel(job_id: UUID | None = JOB_ID) -> Cancel:
    return Cancel(command=CancelAttempt(attempt_id=ATTEMPT_ID, reason="asked", job_id=job_id), at=at(20))


def report(type_: str, data: dict[str, Any] | None = None, seconds: float = 30) -> Report:
    line = ReportMilestone(attempt_id=ATTEMPT_ID, seq=1, report_type=type_, data=data or {}, at=at(seconds))
    return Report(command=line)


def observed(observation: Observation, *, epoch: int = 1, seconds: float = 40) -> RecordObserved:
    return RecordObserved(epoch=epoch, at=at(seconds), observation=observation, report_grace_s=20)


def exited(code: int, seconds: float = 40) -> Exited:
    return Exited(code=code, ended_at=at(seconds))


# ---- request, lease, intent, acceptance ------------------------------------------------------------------------------


def test_request_on_empty_stream_records_attempt_requested() -> None:
    assert when([], request()) == [REQUESTED]


def test_request_again_records_nothing() -> None:
    assert when(RUNNING, request()) == []


def test_first_lease_records_attempt_leased() -> None:
    assert when([REQUESTED], TakeLease(epoch=1, at=T0, owner="a")) == [LEASED]


@pytest.mark.parametrize("epoch", [0, 1])
def test_lease_of_an_epoch_already_taken_by_another_is_refused(epoch: int) -> None:
    assert refusal(LEASED_PHASE, TakeLease(epoch=epoch, at=T0, owner="b")) == "stale_epoch"


def test_lease_taken_twice_by_the_same_owner_records_nothing() -> None:
    assert when(LEASED_PHASE, TakeLease(epoch=1, at=T0, owner="a")) == []


def test_lease_of_an_ended_attempt_is_refused() -> None:
    assert refusal([*RUNNING, SUCCEEDED], TakeLease(epoch=2, at=T0, owner="b")) == "invalid_job_state"


def test_intent_is_recorded_once_per_epoch() -> None:
    intend = IntendStart(epoch=1, at=T0, token_sha256=DIGEST)
    assert when(LEASED_PHASE, intend) == [INTENDED]
    assert when(STARTING, intend) == []
    assert refusal(STARTING, IntendStart(epoch=1, at=T0, token_sha256="b" * 64)) == "invalid_job_state"


def test_a_newer_epoch_may_intend_again_with_another_token() -> None:
    intend = IntendStart(epoch=2, at=at(5), token_sha256="b" * 64)
    expected = AttemptStartIntended(epoch=2, token_sha256="b" * 64, intended_at=at(5))
    assert when([*STARTING, LEASED_2], intend) == [expected]


def test_no_start_is_intended_once_a_run_was_accepted() -> None:
    intend = IntendStart(epoch=2, at=at(5), token_sha256="b" * 64)
    assert refusal([*ACCEPTED_PHASE, LEASED_2], intend) == "invalid_job_state"


def test_no_start_is_intended_after_a_cancel_request() -> None:
    intend = IntendStart(epoch=1, at=at(25), token_sha256=DIGEST)
    assert refusal([*STARTING, CANCEL_REQUESTED], intend) == "invalid_job_state"
    assert when([*LEASED_PHASE, *when(LEASED_PHASE, cancel())], intend) == []


def test_acceptance_is_recorded_once() -> None:
    accepted = RecordAccepted(epoch=1, at=T0, provider_ref="ref")
    assert when(STARTING, accepted) == [ACCEPTED]
    assert when(ACCEPTED_PHASE, accepted) == []


def test_acceptance_after_an_early_hello_is_still_recorded() -> None:
    history = [*STARTING, STARTED]
    assert when(history, RecordAccepted(epoch=1, at=T0, provider_ref="ref")) == [ACCEPTED]
    assert when([*history, ACCEPTED], report("hello")) == []


def test_acceptance_of_a_second_run_is_refused() -> None:
    assert refusal(RUNNING, RecordAccepted(epoch=1, at=T0, provider_ref="other")) == "invalid_job_state"


def test_refused_start_fails_the_attempt_with_its_advice() -> None:
    refused = RecordStartRefused(epoch=1, at=at(3), message="no trainer", advice="just setup-trainer")
    [event] = when(STARTING, refused)
    assert event == AttemptFailed(
        kind="start_refused",
        message="no trainer",
        advice="just setup-trainer",
        exit_code=None,
        ended_at=at(3),
        billed_seconds=0,
    )


FENCED: list[AttemptCommand] = [
    IntendStart(epoch=1, at=T0, token_sha256=DIGEST),
    RecordAccepted(epoch=1, at=T0, provider_ref="ref"),
    RecordStartRefused(epoch=1, at=T0, message="m", advice=None),
    observed(Gone(message="m")),
    observed(exited(70)),
    observed(StillRunning()),
]


@pytest.mark.parametrize("command", FENCED)
@pytest.mark.parametrize(
    "history",
    [
        [*LEASED_PHASE, LEASED_2],
        [*STARTING, LEASED_2],
        [*ACCEPTED_PHASE, LEASED_2],
        [*RUNNING, LEASED_2],
        [*RUNNING, LEASED_2, CANCEL_REQUESTED],
        [*RUNNING, LEASED_2, SUCCEEDED],
    ],
)
def test_every_command_under_a_lower_epoch_is_refused(history: list[Event], command: AttemptCommand) -> None:
    assert refusal(history, command) == "stale_epoch"


# ---- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [STARTING, ACCEPTED_PHASE])
def test_hello_starts_the_attempt_even_before_its_acceptance_is_recorded(history: list[Event]) -> None:
    assert when(history, report("hello", {"device": "cpu"}, 10)) == [STARTED]


def test_hello_again_records_nothing() -> None:
    assert when(RUNNING, report("hello", {"device": "cpu"})) == []


def test_checkpoint_is_recorded_once_per_step() -> None:
    file = CheckpointFile(name="state.json", sha256="c" * 64, size_bytes=3, object_key="k")
    data = {
        "step": 4,
        "files": [{"name": "state.json", "sha256": "c" * 64, "size_bytes": 3, "object_key": "k"}],
        "new_member": 1,
    }
    saved = AttemptCheckpointSaved(checkpoint=Checkpoint(step=4, files=[file]), saved_at=at(30))
    assert when(RUNNING, report("checkpoint", data)) == [saved]
    assert when([*RUNNING, saved], report("checkpoint", data)) == []


def test_done_succeeds_and_bills_from_hello_to_done() -> None:
    artifact = {"name": "lora", "object_key": "k", "sha256": "d" * 64, "size_bytes": 9}
    data = {"steps": 5, "final_loss": 0.5, "artifacts": [artifact], "undelivered": ["x"]}
    [event] = when(RUNNING, report("done", data, 69.2))
    assert event == AttemptSucceeded(
        steps=5,
        final_loss=0.5,
        artifacts=[ArtifactRef(name="lora", object_key="k", sha256="d" * 64, size_bytes=9)],
        undelivered=["x"],
        ended_at=at(69.2),
        billed_seconds=60,
    )


def test_end_before_the_start_by_the_trainers_clock_is_the_start() -> None:
    [event] = when(RUNNING, report("done", {"steps": 5}, 3))
    assert isinstance(event, AttemptSucceeded)
    assert (event.ended_at, event.billed_seconds) == (STARTED.started_at, 0)


def test_done_that_was_never_started_bills_nothing() -> None:
    [event] = when(ACCEPTED_PHASE, report("done", {"steps": 5}))
    assert isinstance(event, AttemptSucceeded)
    assert event.billed_seconds == 0


def test_failed_report_fails_with_the_trainers_own_words() -> None:
    data = {"kind": "nan_loss", "message": "10 in a row", "advice": "lower the rate"}
    [event] = when(RUNNING, report("failed", data, 30))
    assert event == AttemptFailed(
        kind="nan_loss",
        message="10 in a row",
        advice="lower the rate",
        exit_code=None,
        ended_at=at(30),
        billed_seconds=20,
    )


def test_gpu_fault_is_recorded_once_for_each_fault_and_gpu() -> None:
    data = {"kind": "ecc", "gpu": "0", "detail": "1 uncorrectable error", "step": 7}
    [event] = when(RUNNING, report("gpu_fault", data, 30))
    assert event == AttemptGpuFaultReported(
        fault="ecc", gpu="0", detail="1 uncorrectable error", step=7, reported_at=at(30)
    )
    assert when([*RUNNING, event], report("gpu_fault", {**data, "detail": "2 errors"}, 31)) == []
    assert len(when([*RUNNING, event], report("gpu_fault", {**data, "gpu": "1"}, 31))) == 1
    assert len(when([*RUNNING, event], report("gpu_fault", {**data, "kind": "thermal"}, 31))) == 1
    assert len(when([*RUNNING, CANCEL_REQUESTED], report("gpu_fault", data))) == 1


def test_a_running_trainer_is_asked_once_for_each_command_id() -> None:
    command = AskTrainer(attempt_id=ATTEMPT_ID, command_id=JOB_ID, name="checkpoint_now")
    ask = Ask(command=command, at=at(30))
    [event] = when(RUNNING, ask)
    assert event == AttemptCommandAsked(command_id=JOB_ID, name="checkpoint_now", asked_at=at(30))
    assert when([*RUNNING, event], ask) == []
    assert when([*RUNNING, event, LEASED_2], ask) == []
    another = Ask(command=replace(command, command_id=ATTEMPT_ID), at=at(31))
    assert len(when([*RUNNING, event], another)) == 1
    assert refusal([], ask) == "not_found"
    for nobody_runs in (ACCEPTED_PHASE, [*RUNNING, CANCEL_REQUESTED], [*RUNNING, SUCCEEDED]):
        assert refusal(nobody_runs, ask) == "invalid_job_state"


def test_gpu_fault_outlives_a_new_lease_and_is_late_only_when_it_is_new() -> None:
    data = {"kind": "ecc", "gpu": "0"}
    [fault] = when(RUNNING, report("gpu_fault", data))
    assert when([*RUNNING, fault, LEASED_2], report("gpu_fault", data)) == []
    ended = [*RUNNING, fault, FAILED_BY_EXIT]
    assert when(ended, report("gpu_fault", data)) == []
    assert when([*RUNNING, FAILED_BY_EXIT], report("gpu_fault", data, 90)) == [
        AttemptLateReport(report_type="gpu_fault", at=at(90))
    ]


@pytest.mark.parametrize(
    ("type_", "data"),
    [("metrics", {}), ("gpu_fault", {"gpu": 3}), ("checkpoint", {"step": "x"}), ("done", {"steps": 1, "artifacts": 3})],
)
def test_report_that_cannot_be_read_is_refused(type_: str, data: dict[str, Any]) -> None:
    assert refusal(RUNNING, report(type_, data)) == "validation_error"


def test_report_before_any_start_is_refused() -> None:
    assert refusal([], report("hello")) == "not_found"
    assert refusal(LEASED_PHASE, report("hello")) == "invalid_job_state"


def test_late_report_is_kept_once_per_type_beside_the_end() -> None:
    history = [*RUNNING, FAILED_BY_EXIT]
    late = AttemptLateReport(report_type="done", at=at(90))
    assert when(history, report("done", {"steps": 5}, 90)) == [late]
    assert when([*history, late], report("done", {"steps": 5}, 95)) == []
    assert when([*history, late], report("failed", {}, 95)) == [AttemptLateReport(report_type="failed", at=at(95))]


def test_resent_report_that_the_history_already_holds_is_not_late() -> None:
    assert when([*RUNNING, SUCCEEDED], report("done", {"steps": 5})) == []
    assert when([*RUNNING, SUCCEEDED], report("hello")) == []


# ---- what the provider shows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (64, "bad_config"),
        (65, "bad_data"),
        (69, "unreachable"),
        (70, "internal"),
        (73, "disk_full"),
        (74, "gpu_fault"),
        (75, "preempted"),
        (76, "out_of_memory"),
        (77, "superseded"),
        (78, "nan_loss"),
        (137, "killed"),
        (-9, "killed"),
        (-15, "killed"),
        (1, "internal"),
    ],
)
def test_exit_code_without_a_report_becomes_its_kind(code: int, kind: str) -> None:
    [event] = when(RUNNING, observed(exited(code)))
    assert isinstance(event, AttemptFailed)
    assert (event.kind, event.exit_code, event.billed_seconds) == (kind, code, 30)


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_every_kind_of_failure_is_told_by_its_exit_code_alone(kind: str, code: ExitCode) -> None:
    [event] = when(RUNNING, observed(exited(code)))
    assert isinstance(event, AttemptFailed)
    assert event.kind == kind
    assert event.advice or kind in {"internal", "preempted"}


def test_failure_message_quotes_the_trainers_last_words() -> None:
    [event] = when(RUNNING, observed(Exited(code=70, ended_at=at(40), last_words="KeyError: 'x'")))
    assert isinstance(event, AttemptFailed)
    assert "KeyError: 'x'" in event.message


def test_exit_zero_waits_for_the_report_and_then_says_it_never_came() -> None:
    assert when(RUNNING, observed(exited(0, 40), seconds=59)) == []
    [event] = when(RUNNING, observed(exited(0, 40), seconds=60))
    assert isinstance(event, AttemptFailed)
    assert (event.kind, event.exit_code, event.ended_at) == ("internal", 0, at(40))
    assert "never arrived" in event.message


@pytest.mark.parametrize(
    ("last_sign_at", "ended_at", "billed"),
    [
        (at(25), at(25), 15),
        (at(5), at(10), 0),  # never before its start
        (at(99_999_999), at(260_000), 259_990),  # never after now
        (None, at(10), 0),
    ],
)
def test_vanished_run_is_lost_and_billed_until_its_last_sign_of_life(
    last_sign_at: datetime | None, ended_at: datetime, billed: int
) -> None:
    gone = Gone(message="power cut", ended_at=last_sign_at)
    assert when(RUNNING, observed(gone, seconds=260_000)) == [
        AttemptLost(message="power cut", ended_at=ended_at, billed_seconds=billed)
    ]


@pytest.mark.parametrize(("last_sign_at", "ended_at"), [(at(25), at(25)), (at(99), at(40)), (None, at(40))])
def test_run_that_vanished_before_its_hello_is_lost_and_costs_nothing(
    last_sign_at: datetime | None, ended_at: datetime
) -> None:
    assert when(ACCEPTED_PHASE, observed(Gone(message="m", ended_at=last_sign_at))) == [
        AttemptLost(message="m", ended_at=ended_at, billed_seconds=0)
    ]


def test_running_attempt_that_the_provider_forgot_is_billed_for_nothing_that_nobody_saw() -> None:
    [event] = when(RUNNING, observed(NeverStarted(), seconds=260_000))
    assert isinstance(event, AttemptLost)
    assert (event.ended_at, event.billed_seconds) == (at(10), 0)


def test_accepted_run_that_the_provider_forgot_is_lost() -> None:
    [event] = when(ACCEPTED_PHASE, observed(NeverStarted()))
    assert isinstance(event, AttemptLost)


def test_nothing_at_the_provider_while_starting_ends_nothing() -> None:
    assert when([*STARTING, LEASED_2], observed(NeverStarted(), epoch=2)) == []


@pytest.mark.parametrize("history", [STARTING, [*STARTING, CANCEL_REQUESTED]])
def test_the_epoch_that_intended_a_start_cannot_conclude_that_it_never_happened(history: list[Event]) -> None:
    assert refusal(history, observed(NeverStarted())) == "invalid_job_state"


def test_running_observation_records_nothing() -> None:
    assert when(RUNNING, observed(StillRunning())) == []


# ---- cancel ----------------------------------------------------------------------------------------------------------


def test_cancel_before_any_intent_ends_at_once() -> None:
    events = when(LEASED_PHASE, cancel())
    assert events == [CANCEL_REQUESTED, AttemptCancelled(ended_at=at(20), billed_seconds=0)]


@pytest.mark.parametrize("history", [STARTING, ACCEPTED_PHASE, RUNNING])
def test_cancel_of_what_may_run_is_first_only_a_request(history: list[Event]) -> None:
    assert when(history, cancel()) == [CANCEL_REQUESTED]
    assert when([*history, CANCEL_REQUESTED], cancel()) == []


def test_cancel_after_the_end_changes_nothing() -> None:
    assert when([*RUNNING, SUCCEEDED], cancel()) == []


def test_cancel_of_an_attempt_of_no_known_job_is_refused() -> None:
    assert refusal([], cancel(job_id=None)) == "not_found"


FORESTALLED = [CANCEL_REQUESTED, AttemptCancelled(ended_at=at(20), billed_seconds=0)]


def test_cancel_before_the_request_is_recorded_as_an_end() -> None:
    assert when([], cancel()) == FORESTALLED
    assert when(FORESTALLED, cancel()) == []


def test_a_request_that_comes_after_its_cancel_starts_nothing() -> None:
    assert when(FORESTALLED, request()) == []
    assert refusal(FORESTALLED, TakeLease(epoch=1, at=T0, owner="a")) == "not_found"
    assert refusal(FORESTALLED, IntendStart(epoch=1, at=T0, token_sha256=DIGEST)) == "not_found"


def test_nobody_reports_for_an_attempt_that_was_never_requested() -> None:
    assert refusal(FORESTALLED, report("hello")) == "invalid_job_state"


@pytest.mark.parametrize("seen", [exited(75), exited(-9), Gone(message="m", ended_at=at(40))])
def test_after_a_cancel_request_any_confirmed_end_is_cancelled(seen: Observation) -> None:
    [event] = when([*RUNNING, CANCEL_REQUESTED], observed(seen))
    assert event == AttemptCancelled(ended_at=at(40), billed_seconds=30)


def test_after_a_cancel_request_an_end_that_nobody_saw_is_cancelled_at_the_last_sign_of_life() -> None:
    history = [*RUNNING, CANCEL_REQUESTED]
    assert when(history, observed(NeverStarted())) == [AttemptCancelled(ended_at=at(10), billed_seconds=0)]
    gone = Gone(message="m", ended_at=at(15))
    assert when(history, observed(gone)) == [AttemptCancelled(ended_at=at(15), billed_seconds=5)]


def test_cancelled_start_that_never_happened_is_cancelled() -> None:
    [event] = when([*STARTING, CANCEL_REQUESTED, LEASED_2], observed(NeverStarted(), epoch=2))
    assert event == AttemptCancelled(ended_at=at(40), billed_seconds=0)


def test_acceptance_arriving_after_a_cancel_request_is_recorded() -> None:
    accepted = RecordAccepted(epoch=1, at=T0, provider_ref="ref")
    assert when([*STARTING, CANCEL_REQUESTED], accepted) == [ACCEPTED]


def test_failed_report_after_a_cancel_request_waits_for_the_machine_to_be_gone() -> None:
    assert when([*RUNNING, CANCEL_REQUESTED], report("failed", {"kind": "preempted"})) == []


def test_training_that_finished_before_the_cancel_took_effect_is_a_success() -> None:
    [event] = when([*RUNNING, CANCEL_REQUESTED], report("done", {"steps": 5}, 30))
    assert isinstance(event, AttemptSucceeded)


def test_events_of_another_phase_leave_the_state_as_it_is() -> None:
    state = ATTEMPT.initial
    for event in (STARTED, SUCCEEDED, LEASED):
        assert ATTEMPT.evolve(state, event) is state
