"""A job in the words of the HTTP contract: the one place where our phases meet the documented status words."""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from services.gateway.domain.view_attempt import AttemptView, DeliveryView
from services.gateway.domain.view_money import cost_micro_usd
from services.gateway.domain.views import JobView

Status = Literal["pending", "uploading", "queued", "running", "completed", "failed", "cancelled"]
TERMINAL_STATUSES: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})
ACTIVE_STATUSES: tuple[Status, ...] = ("pending", "uploading", "queued", "running")
MICRO = 1_000_000
MODEL_SUFFIX = ".safetensors"
CHECKPOINT_FOLDER = "/checkpoint-"


class JobBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job as clients see it. Times are ISO 8601 in UTC; `queue_position` counts from 1.

    It is 0 for a job that has its slot and is being started, and None for one that does not wait.
    """

    job_id: str
    job_type: Literal["local", "cloud"]
    provider: str
    status: Status
    config_name: str | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    cost_usd: float | None
    hardware_type: str | None
    error_message: str | None
    output_url: str | None
    user_id: str
    priority: int
    metadata: dict[str, Any]
    is_terminal: bool
    is_active: bool
    duration_seconds: float | None
    queue_position: int | None
    """Last: `bodies.py` puts it behind what it keeps encoded."""


def status_of(view: JobView) -> Status:
    """The documented word for where the job is."""
    match view.job.phase:
        case "unknown" | "submitted":
            packing = bool(view.job.dataset_ids) and not view.job.datasets_ready
            return "uploading" if packing else "pending"
        case "queued" | "dispatching":
            return "queued"
        case "running" | "completing":
            return "running"
        case "completed" | "failed" | "cancelled":
            return view.job.phase


def job_type_of(provider: str) -> Literal["local", "cloud"]:
    """`local` runs on this machine, everything else is somewhere else."""
    return "local" if provider == "local" else "cloud"


def job_body(view: JobView, *, now: datetime, queue_position: int | None) -> JobBody:
    """The job at the moment `now`: a running one costs and lasts until then."""
    facts, attempt = view.job, view.current_attempt
    status = status_of(view)
    cost = cost_micro_usd(view.money, view.attempts.values(), now)
    return JobBody(
        job_id=str(view.job_id),
        job_type=job_type_of(facts.provider),
        provider=facts.provider,
        status=status,
        config_name=facts.config_name,
        created_at=iso(facts.submitted_at) or "",
        started_at=iso(facts.started_at),
        completed_at=iso(facts.ended_at),
        cost_usd=None if cost is None else cost / MICRO,
        hardware_type=attempt.hardware if attempt else None,
        error_message=facts.last_failure.message if status == "failed" and facts.last_failure else None,
        output_url=_output_url(view),
        user_id=facts.user_id,
        priority=facts.priority,
        metadata=_metadata(view),
        is_terminal=status in TERMINAL_STATUSES,
        is_active=status in ACTIVE_STATUSES,
        duration_seconds=_duration_s(view, now),
        queue_position=_place(view, status, queue_position),
    )


def is_at_rest(view: JobView) -> bool:
    """Whether the body stays the same, but for its place in the queue, until something happens to the job."""
    is_running = view.job.started_at is not None and view.job.ended_at is None
    is_costing = any(run.started_at is not None and run.billed_seconds is None for run in view.attempts.values())
    return not is_running and not is_costing


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 with microseconds and `+00:00`."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds")


def _place(view: JobView, status: Status, queue_position: int | None) -> int | None:
    if view.job.phase == "dispatching":
        return 0
    return queue_position if status in {"pending", "uploading", "queued"} else None


def _duration_s(view: JobView, now: datetime) -> float | None:
    if view.job.started_at is None:
        return None
    return max(0.0, ((view.job.ended_at or now) - view.job.started_at).total_seconds())


def _output_url(view: JobView) -> str | None:
    """The model file when there is one, else the list of what was stored; None before there is anything."""
    if view.job.steps is None or not view.artifacts:
        return None
    models = [
        artifact
        for artifact in view.artifacts.values()
        if artifact.object_key.endswith(MODEL_SUFFIX) and CHECKPOINT_FOLDER not in artifact.object_key
    ]
    if not models:
        return f"/api/v1/jobs/{view.job_id}/artifacts"
    newest = max(models, key=lambda art: (art.stored_at, art.object_key))
    return f"/api/cloud/storage/{newest.bucket}/{newest.object_key}"


def _metadata(view: JobView) -> dict[str, Any]:
    facts = view.job
    return {
        "phase": facts.phase,
        "tracker_run_name": facts.tracker_run_name,
        "wait": msgspec.to_builtins(facts.wait),
        "queue_reason": facts.queue_reason,
        "not_before": iso(facts.not_before) if facts.phase == "queued" else None,
        "dispatch_reason": facts.dispatch_reason,
        "placement_reason": facts.placement_reason,
        "attempt": facts.attempt_number,
        "max_attempts": facts.max_attempts,
        "attempts": [attempt_body(attempt) for attempt in view.runs],
        "checkpoint_step": facts.checkpoint_step,
        "steps": facts.steps,
        "final_loss": facts.final_loss,
        "delivery": facts.delivery,
        "missing": facts.missing,
        "deliveries": deliveries_of(view),
        "delivery_problems": delivery_problems(view),
        "artifacts": {
            "count": len(view.artifacts),
            "size_bytes": sum(artifact.size_bytes for artifact in view.artifacts.values()),
        },
        "failure": msgspec.to_builtins(facts.last_failure),
        "cancel_requested": facts.cancel_requested_at is not None,
        "cancel_reason": facts.cancel_reason,
        "late_facts": facts.late_facts,
    }


def deliveries_of(view: JobView) -> list[dict[str, Any]]:
    """What came of giving files to targets outside, in the newest run that tried each, oldest first."""
    newest: dict[str, DeliveryView] = {}
    for run in view.runs:
        newest |= run.deliveries
    told = sorted(newest.values(), key=lambda delivery: (delivery.at, delivery.target, delivery.what))
    return [{**msgspec.to_builtins(delivery), "at": iso(delivery.at)} for delivery in told]


def delivery_problems(view: JobView) -> list[str]:
    """What did not get where it should go, one sentence each: a job may be completed and have some."""
    ours = [f"{name} did not reach our storage" for name in view.job.missing]
    failed = [each for each in deliveries_of(view) if each["status"] == "failed"]
    return [*ours, *(f"{each['what']} did not reach {each['target']}: {each['message']}" for each in failed)]


def attempt_body(attempt: AttemptView) -> dict[str, Any]:
    """One run as clients see it; the token's digest stays inside."""
    return {
        "attempt_id": str(attempt.attempt_id),
        "number": attempt.number,
        "provider": attempt.provider,
        "hardware": attempt.hardware,
        "state": attempt.state,
        "device": attempt.device,
        "provider_ref": attempt.provider_ref,
        "started_at": iso(attempt.started_at),
        "ended_at": iso(attempt.ended_at),
        "billed_seconds": attempt.billed_seconds,
        "checkpoint_step": attempt.checkpoint_step,
        "failure": msgspec.to_builtins(attempt.failure),
        "gpu_faults": attempt.gpu_faults,
    }
