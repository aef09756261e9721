"""Commands accepted by, and events written to, `worker-<uuid7>` streams. Owner: provider-bridge.

A worker is somebody's own machine that pulls jobs. Its heartbeats are no history: only what they change is an event.
No event and no command holds a worker's token, only the SHA-256 of it.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.job import Command, Event

WorkerType = Literal["persistent", "ephemeral"]
"""An ephemeral worker runs one job and ends."""
WorkerStatus = Literal["connecting", "idle", "busy", "offline", "draining"]
"""As clients see it; `connecting` has never registered."""
RunOutcome = Literal["exited", "lost", "dropped", "abandoned", "never_begun"]
"""exited: it ended and the worker says how; lost: the worker was away for too long; dropped: the worker came back
without it; abandoned: the worker was removed; never_begun: it was cancelled before the worker took it."""
ReportedStatus = Literal["starting", "running", "completed", "failed", "cancelled"]
PING_S = 30.0
"""A stream that has nothing to say says `ping` so often."""
HEARTBEAT_S = 30.0
"""How often a worker tells that it lives."""
OFFLINE_S = 120.0
"""A worker that was silent for so long is offline."""


# ---- events ----------------------------------------------------------------------------------------------------------


class WorkerCreated(Event, frozen=True, kw_only=True, tag="worker.created.v1"):
    """There is such a worker, and whoever has the token is it."""

    name: str
    worker_type: WorkerType
    labels: dict[str, str]
    """Given by an administrator: they win over the worker's own."""
    token_sha256: str
    price_micro_usd_per_hour: int
    created_at: datetime


class WorkerRegistered(Event, frozen=True, kw_only=True, tag="worker.registered.v1"):
    """What the worker says of itself is new."""

    name: str
    gpu_info: dict[str, Any]
    labels: dict[str, str]
    provider: str | None
    """Where the machine stands, in its owner's words."""
    registered_at: datetime


class WorkerCameOnline(Event, frozen=True, kw_only=True, tag="worker.came_online.v1"):
    """It is heard of."""

    at: datetime


class WorkerWentOffline(Event, frozen=True, kw_only=True, tag="worker.went_offline.v1"):
    """It has been silent for too long; its run may live on."""

    last_heard_at: datetime
    at: datetime


class WorkerTokenRotated(Event, frozen=True, kw_only=True, tag="worker.token_rotated.v1"):
    """From here on only the new token is accepted."""

    token_sha256: str
    rotated_at: datetime


class WorkerDraining(Event, frozen=True, kw_only=True, tag="worker.draining.v1"):
    """It is given no more jobs, and told to end when it has none."""

    drained_at: datetime


class WorkerResumed(Event, frozen=True, kw_only=True, tag="worker.resumed.v1"):
    """It is given jobs again."""

    resumed_at: datetime


class WorkerRemoved(Event, frozen=True, kw_only=True, tag="worker.removed.v1"):
    """Terminal: its token is worth nothing."""

    reason: Literal["asked", "never_registered", "ephemeral_offline"]
    removed_at: datetime


class WorkerAssigned(Event, frozen=True, kw_only=True, tag="worker.assigned.v1"):
    """The attempt's run is this worker's, whether it has heard of it yet or not."""

    attempt_id: UUID
    job_id: UUID
    epoch: int
    assigned_at: datetime


class WorkerRunBegun(Event, frozen=True, kw_only=True, tag="worker.run_begun.v1"):
    """The worker says that the run's trainer was started."""

    attempt_id: UUID
    begun_at: datetime


class WorkerRunCancelAsked(Event, frozen=True, kw_only=True, tag="worker.run_cancel_asked.v1"):
    """The worker is to end the run, by force after the grace period."""

    attempt_id: UUID
    grace_s: float
    asked_at: datetime


class WorkerReleased(Event, frozen=True, kw_only=True, tag="worker.released.v1"):
    """The run is no longer this worker's."""

    attempt_id: UUID
    outcome: RunOutcome
    exit_code: int | None
    released_at: datetime
    ended_at: datetime | None = None
    """When the run ended; of one that was lost, when its worker was last heard of."""
    last_words: str = ""


WorkerEvent = (
    WorkerCreated
    | WorkerRegistered
    | WorkerCameOnline
    | WorkerWentOffline
    | WorkerTokenRotated
    | WorkerDraining
    | WorkerResumed
    | WorkerRemoved
    | WorkerAssigned
    | WorkerRunBegun
    | WorkerRunCancelAsked
    | WorkerReleased
)


# ---- commands of people ----------------------------------------------------------------------------------------------


class CreateWorker(Command, frozen=True, kw_only=True, tag="create_worker"):
    """Answers nothing. The same command again changes nothing."""

    worker_id: UUID
    name: str
    worker_type: WorkerType
    labels: dict[str, str]
    token_sha256: str
    price_micro_usd_per_hour: int = 0


class RotateWorkerToken(Command, frozen=True, kw_only=True, tag="rotate_worker_token"):
    """Refuses with `worker_not_found`."""

    worker_id: UUID
    token_sha256: str


class DrainWorker(Command, frozen=True, kw_only=True, tag="drain_worker"):
    """Refuses with `worker_not_found`."""

    worker_id: UUID


class ResumeWorker(Command, frozen=True, kw_only=True, tag="resume_worker"):
    """Refuses with `worker_not_found`."""

    worker_id: UUID


class RemoveWorker(Command, frozen=True, kw_only=True, tag="remove_worker"):
    """Refuses with `worker_not_found`, and with `worker_busy` unless forced; then its run is given up."""

    worker_id: UUID
    force: bool = False


class ReadWorkers(Command, frozen=True, kw_only=True, tag="read_workers"):
    """Answers `{"workers": [WorkerItem, ...]}`, oldest first."""

    status: WorkerStatus | None = None


class WorkerItem(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it is listed."""

    worker_id: str
    name: str
    worker_type: WorkerType
    status: WorkerStatus
    gpu_info: dict[str, Any]
    provider: str | None
    labels: dict[str, str]
    current_job_id: str | None
    last_heartbeat: datetime | None
    connected_at: datetime | None
    created_at: datetime
    connected: bool
    uptime_seconds: float | None
    price_usd_per_hour: float = 0.0
    last_report: dict[str, Any] | None = None
    """What its last heartbeat said: status, job_progress, gpu_utilization, vram_used_gb."""


# ---- commands of workers ---------------------------------------------------------------------------------------------
# Each is refused with `invalid_token` unless the digest is that of the worker's present token.


class RegisterWorker(Command, frozen=True, kw_only=True, tag="register_worker"):
    """Answers `{"resume_job": WorkerJob | null, "abandon_job": job id | null}`."""

    worker_id: UUID
    token_sha256: str
    name: str
    gpu_info: dict[str, Any]
    labels: dict[str, str]
    provider: str | None = None
    current_job_id: str | None = None
    current_attempt_id: UUID | None = None


class BeatWorker(Command, frozen=True, kw_only=True, tag="beat_worker"):
    """Answers `{"abandon_job": job id | null}`: a job that it says it has and that is not its own any more."""

    worker_id: UUID
    token_sha256: str
    status: str
    current_job_id: str | None = None
    current_attempt_id: UUID | None = None
    job_progress: dict[str, Any] | None = None
    gpu_utilization: float | None = None
    vram_used_gb: float | None = None


class ReportWorkerJob(Command, frozen=True, kw_only=True, tag="report_worker_job"):
    """Refuses with `job_not_found`, or with `not_assigned` when the job is not this worker's."""

    worker_id: UUID
    token_sha256: str
    job_id: UUID
    status: ReportedStatus
    attempt_id: UUID | None = None
    exit_code: int | None = None
    error: str | None = None
    ended_s_ago: float = 0.0
    """How long ago the run ended: a duration, as the worker's clock may be wrong."""


class ReadWorkerOrders(Command, frozen=True, kw_only=True, tag="read_worker_orders"):
    """Answers WorkerOrders: all that the worker should know now."""

    worker_id: UUID
    token_sha256: str


class WorkerJob(msgspec.Struct, frozen=True, kw_only=True):
    """A run to be made: `job_submit`'s data. The token is the trainer's own."""

    job_id: str
    attempt_id: str
    epoch: int
    run_spec: dict[str, Any]
    """As in shared.contracts.run.RunSpec."""
    token: str
    max_run_s: int | None = None


class WorkerCancel(msgspec.Struct, frozen=True, kw_only=True):
    """A run to be ended: `job_cancel`'s data."""

    job_id: str
    attempt_id: str
    grace_s: float


class WorkerOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's stream says, as of now; whoever was told before is told nothing new."""

    submit: WorkerJob | None = None
    cancel: WorkerCancel | None = None
    drain: bool = False
    shutdown: bool = False
