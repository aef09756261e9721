"""What a trainer's report makes of an attempt: the half of the decider that hears from the machine itself."""

import math
from datetime import datetime
from typing import Any, Literal, TypeVar, assert_never

import msgspec

from services.provider_bridge.domain.attempt_states import (
    Absent,
    Accepted,
    AttemptState,
    Ended,
    Ending,
    Forestalled,
    Requested,
    Run,
    Running,
    Starting,
    delivery_key,
)
from shared.contracts.attempt import (
    AttemptCheckpointSaved,
    AttemptDelivered,
    AttemptDeliveryFailed,
    AttemptFailed,
    AttemptGpuFaultReported,
    AttemptLateReport,
    AttemptStarted,
    AttemptSucceeded,
    ReportMilestone,
)
from shared.contracts.job import ArtifactRef, Checkpoint, Event
from shared.problems import Rejected

T = TypeVar("T", bound=msgspec.Struct)


class _Hello(msgspec.Struct, frozen=True, kw_only=True):
    device: str = "unknown"


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    steps: int = 0
    final_loss: float | None = None
    artifacts: list[ArtifactRef] = []
    undelivered: list[str] = []


class _Delivery(msgspec.Struct, frozen=True, kw_only=True):
    target: str
    what: str
    status: Literal["delivered", "failed"]
    url: str | None = None
    message: str = "The trainer did not say why."
    files: list[str] = []


class _GpuFault(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = "unknown"
    gpu: str = "unknown"
    detail: str = ""
    step: int | None = None


class _Failed(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = "internal"
    message: str = "The trainer failed and did not say why."
    advice: str | None = None


def billed_seconds(run: Run, ended_at: datetime) -> int:
    """Whole seconds, the last one begun counted, from the trainer's hello to the end; 0 if it never said hello."""
    if not isinstance(run, Running):
        return 0
    return max(0, math.ceil((ended_at - run.started_at).total_seconds()))


def reported(state: AttemptState, report: ReportMilestone) -> list[Event]:
    """The events that a trainer's report leads to; raises Rejected when it cannot be one."""
    match state:
        case Absent():
            raise Rejected("not_found", "there is no such attempt")
        case Forestalled() | Requested() | Ending(run=Requested()):
            raise Rejected("invalid_job_state", "nothing was started that could report")
        case Ended():
            return _late(state, report)
        case Ending():
            return _milestone(state.run, report, ending=True)
        case Starting() | Accepted() | Running():
            return _milestone(state, report, ending=False)
        case _:
            assert_never(state)


def _milestone(run: Run, report: ReportMilestone, *, ending: bool) -> list[Event]:
    match report.report_type:
        case "hello":
            begun = AttemptStarted(started_at=report.at, device=_read(report, _Hello).device)
            return [] if isinstance(run, Running) else [begun]
        case "checkpoint":
            checkpoint = _read(report, Checkpoint)
            saved = AttemptCheckpointSaved(checkpoint=checkpoint, saved_at=report.at)
            return [] if checkpoint.step in run.saved_steps else [saved]
        case "delivery":
            delivery = _delivery(report)
            return [] if delivery_key(delivery) in run.deliveries else [delivery]
        case "gpu_fault":
            return _gpu_fault(run, report)
        case "done":
            return [_succeeded(run, report)]
        case "failed":
            # After a cancel request the run is over only when it is confirmed gone, which is observed, not reported.
            return [] if ending else [_failed_report(run, report)]
        case _:
            raise Rejected("validation_error", f"{report.report_type} is not a milestone")


def _gpu_fault(run: Run, report: ReportMilestone) -> list[Event]:
    fault = _read(report, _GpuFault)
    if (fault.kind, fault.gpu) in run.gpu_faults:
        return []
    return [
        AttemptGpuFaultReported(
            fault=fault.kind, gpu=fault.gpu, detail=fault.detail, step=fault.step, reported_at=report.at
        )
    ]


def _delivery(report: ReportMilestone) -> AttemptDelivered | AttemptDeliveryFailed:
    told = _read(report, _Delivery)
    if told.status == "failed":
        return AttemptDeliveryFailed(
            target=told.target, what=told.what, message=told.message, files=told.files, failed_at=report.at
        )
    return AttemptDelivered(target=told.target, what=told.what, url=told.url, files=told.files, delivered_at=report.at)


def _ended_at(run: Run, report: ReportMilestone) -> datetime:
    """The trainer's moment; never before its own start, whatever its clock did meanwhile."""
    return max(run.started_at, report.at) if isinstance(run, Running) else report.at


def _succeeded(run: Run, report: ReportMilestone) -> AttemptSucceeded:
    done, ended_at = _read(report, _Done), _ended_at(run, report)
    return AttemptSucceeded(
        steps=done.steps,
        final_loss=done.final_loss,
        artifacts=done.artifacts,
        undelivered=done.undelivered,
        ended_at=ended_at,
        billed_seconds=billed_seconds(run, ended_at),
    )


def _failed_report(run: Run, report: ReportMilestone) -> AttemptFailed:
    failed, ended_at = _read(report, _Failed), _ended_at(run, report)
    return AttemptFailed(
        kind=failed.kind,
        message=failed.message,
        advice=failed.advice,
        exit_code=None,
        ended_at=ended_at,
        billed_seconds=billed_seconds(run, ended_at),
    )


def _late(state: Ended, report: ReportMilestone) -> list[Event]:
    if report.report_type in state.late_types or _is_resent(state, report):
        return []
    return [AttemptLateReport(report_type=report.report_type, at=report.at)]


def _is_resent(state: Ended, report: ReportMilestone) -> bool:  # noqa: PLR0911 -- one arm for each case
    """Whether the history already holds this report, so that its arrival after the end is only a lost answer."""
    match report.report_type:
        case "hello":
            return isinstance(state.run, Running)
        case "checkpoint":
            return report.data.get("step") in state.run.saved_steps
        case "delivery":
            return delivery_key(_delivery(report)) in state.run.deliveries
        case "gpu_fault":
            return (report.data.get("kind"), report.data.get("gpu")) in state.run.gpu_faults
        case "done":
            return state.outcome == "succeeded"
        case "failed":
            return state.outcome == "failed" and state.by_report
        case _:
            return False


def _read(report: ReportMilestone, kind: type[T]) -> T:
    data: dict[str, Any] = report.data
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise Rejected("validation_error", f"the {report.report_type} report cannot be read: {error}") from error
