"""Commands accepted by, and events written to, `job-<uuid7>` streams. Owner: scheduler."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.offers import HardwareRequest, Offer

Priority = Literal[0, 10, 20, 30, 40]
"""low, normal, high, urgent, critical: the documented words of the HTTP contract."""

PRIORITY_NAMES: dict[int, str] = {0: "low", 10: "normal", 20: "high", 30: "urgent", 40: "critical"}

FailureKind = Literal[
    "bad_config",
    "bad_data",
    "unreachable",
    "internal",
    "preempted",
    "out_of_memory",
    "nan_loss",
    "killed",
    "lost",
    "superseded",
    "start_refused",
    "no_capacity",
    "no_offer",
    "no_funds",
    "credentials_refused",
    "funds_refused",
    "dataset_refused",
]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact; new fields need defaults, types never change."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may be refused."""


class DatasetRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One dataloader entry whose files must be packed before the job can run; `path` is on storage's machine."""

    dataset_id: str
    path: str


class PackedDataset(msgspec.Struct, frozen=True, kw_only=True):
    """A packed dataset as the job uses it: an uncompressed tar, addressed by the SHA-256 of its bytes."""

    dataset_id: str
    sha256: str
    size_bytes: int
    file_count: int


class CheckpointFile(msgspec.Struct, frozen=True, kw_only=True):
    """One stored file of a checkpoint folder."""

    name: str
    sha256: str
    size_bytes: int
    object_key: str


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is wholly stored and may be resumed from."""

    step: int
    files: list[CheckpointFile]


class ArtifactRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file the trainer says it delivered."""

    name: str
    object_key: str
    sha256: str
    size_bytes: int


# ---- events ----------------------------------------------------------------------------------------------------------


class JobSubmitted(Event, frozen=True, kw_only=True, tag="job.submitted.v1"):
    """Accepted: this commit is the acceptance."""

    user_id: str
    provider: str
    priority: int
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]
    datasets: list[DatasetRequest]
    config_name: str | None
    tracker_run_name: str | None
    idempotency_key: str | None
    account: str
    submitted_at: datetime
    max_attempts: int = 3
    requirements: HardwareRequest | None = None
    """What the job needs of its machine; None = whatever the provider gives."""


class JobDatasetsPacked(Event, frozen=True, kw_only=True, tag="job.datasets_packed.v1"):
    """Every dataset of the job is stored and addressed by its content."""

    datasets: list[PackedDataset]


class JobFundsReserved(Event, frozen=True, kw_only=True, tag="job.funds_reserved.v1"):
    """Billing holds the estimate for this job."""

    reserved_micro_usd: int
    price_micro_usd_per_hour: int


class JobQueued(Event, frozen=True, kw_only=True, tag="job.queued.v1"):
    """Ready to run; `not_before` delays a retry. Queue order is priority, then `queued_at`, then position."""

    queued_at: datetime
    not_before: datetime | None = None
    reason: str
    """first_time, or why it is back: `retry after preempted`."""


class DecisionBasis(msgspec.Struct, frozen=True, kw_only=True):
    """What a round of the dispatcher decided on: with it, what-if can decide the same again.

    The events of one round are neighbours in the log and have the same basis.
    """

    seen_position: int
    """Every `job` event up to here was taken into account, and none after it."""
    decided_at: datetime
    """The moment that delays were held against."""
    slots_in_all: int
    slots_per_user: int


class JobWaitExplained(Event, frozen=True, kw_only=True, tag="job.wait_explained.v1"):
    """Why a queued job does not run now; written once each time the reason changes."""

    reason: Literal["global_limit", "user_limit", "retry_delay"]
    detail: str
    limit: int
    holders: list[str]
    """Ids of the jobs that hold the slots (at most 10)."""
    basis: DecisionBasis | None = None
    """None in events of before it was recorded."""


class JobDispatched(Event, frozen=True, kw_only=True, tag="job.dispatched.v1"):
    """Given a slot and an attempt. `reason` says why now and why there."""

    attempt_id: UUID
    attempt_number: int
    provider: str
    resume: Checkpoint | None
    reason: str
    dispatched_at: datetime
    basis: DecisionBasis | None = None
    """None in events of before it was recorded."""


class ConsideredOffer(msgspec.Struct, frozen=True, kw_only=True):
    """One offer of a choice: what the job was expected to cost there, or why it was out of the question."""

    provider: str
    hardware: str
    region: str | None
    price_micro_usd_per_hour: int
    expected_s: int | None = None
    """From the start to the model, the wait for the machine and expected repeats included."""
    expected_micro_usd: int | None = None
    against: str | None = None


class JobPlaced(Event, frozen=True, kw_only=True, tag="job.placed.v1"):
    """Where the attempt will run, chosen from the offers that were known. `reason` says it in a sentence.

    `considered` holds the best of the others and the nearest of those that were out of the question, at most 10.
    """

    attempt_id: UUID
    offer: Offer
    reason: str
    considered: list[ConsideredOffer]
    placed_at: datetime


class JobStarted(Event, frozen=True, kw_only=True, tag="job.started.v1"):
    """The attempt's trainer said hello."""

    attempt_id: UUID
    started_at: datetime


class JobCheckpointed(Event, frozen=True, kw_only=True, tag="job.checkpointed.v1"):
    """A checkpoint is stored: the point the next attempt would go on from."""

    attempt_id: UUID
    checkpoint: Checkpoint


class JobAttemptFailed(Event, frozen=True, kw_only=True, tag="job.attempt_failed.v1"):
    """One attempt ended without a model; what follows (retry or end) is the next event."""

    attempt_id: UUID
    kind: str
    message: str
    advice: str | None
    failed_at: datetime
    spared: bool = False
    """It does not count toward the job's attempts: nothing was wrong with the job, and nothing was lost."""


class JobTrainingFinished(Event, frozen=True, kw_only=True, tag="job.training_finished.v1"):
    """The model is trained; delivery is a separate fact."""

    attempt_id: UUID
    steps: int
    final_loss: float | None
    artifacts: list[ArtifactRef]
    undelivered: list[str]
    finished_at: datetime


class JobCancelRequested(Event, frozen=True, kw_only=True, tag="job.cancel_requested.v1"):
    """From here on the job starts nothing new."""

    requested_at: datetime
    reason: str


class JobCompleted(Event, frozen=True, kw_only=True, tag="job.completed.v1"):
    """Terminal. `delivery` is `delivered`, or `incomplete` with the names that never arrived."""

    completed_at: datetime
    delivery: Literal["delivered", "incomplete"]
    missing: list[str]


class JobFailed(Event, frozen=True, kw_only=True, tag="job.failed.v1"):
    """Terminal: why, and what the person can do."""

    failed_at: datetime
    kind: str
    message: str
    advice: str | None


class JobCancelled(Event, frozen=True, kw_only=True, tag="job.cancelled.v1"):
    """Terminal; nothing of the job runs anywhere."""

    cancelled_at: datetime
    reason: str


class JobDeleted(Event, frozen=True, kw_only=True, tag="job.deleted.v1"):
    """Hidden from lists. The history stays."""

    deleted_at: datetime


class JobLateFact(Event, frozen=True, kw_only=True, tag="job.late_fact.v1"):
    """Something arrived after the end; recorded beside the terminal state, which it never moves."""

    fact: str
    attempt_id: UUID | None
    at: datetime


JobEvent = (
    JobSubmitted
    | JobDatasetsPacked
    | JobFundsReserved
    | JobQueued
    | JobWaitExplained
    | JobDispatched
    | JobPlaced
    | JobStarted
    | JobCheckpointed
    | JobAttemptFailed
    | JobTrainingFinished
    | JobCancelRequested
    | JobCompleted
    | JobFailed
    | JobCancelled
    | JobDeleted
    | JobLateFact
)

# ---- commands; the subject is cmd.scheduler.<tag> --------------------------------------------------------------------


class SubmitJob(Command, frozen=True, kw_only=True, tag="submit_job"):
    """Records the job. A repeat with the same job id changes nothing and answers the same."""

    job_id: UUID
    user_id: str
    provider: str
    priority: int = 10
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]
    datasets: list[DatasetRequest]
    config_name: str | None = None
    tracker_run_name: str | None = None
    idempotency_key: str | None = None
    max_attempts: int = 3
    requirements: HardwareRequest | None = None


class CancelJob(Command, frozen=True, kw_only=True, tag="cancel_job"):
    """Cancels a job that has not ended; repeating it is harmless."""

    job_id: UUID
    reason: str = "asked by the user"


class DeleteJob(Command, frozen=True, kw_only=True, tag="delete_job"):
    """Hides a job that has ended."""

    job_id: UUID


class ReadQueue(Command, frozen=True, kw_only=True, tag="read_queue"):
    """Asks who holds the slots and who waits, in the order in which they would run; writes nothing.

    Answers `{"running": [{"job_id", "user_id", "provider", "attempt_number"}], "waiting": [{"job_id", "user_id",
    "priority", "position", "reason", "detail", "queued_at", "not_before"}], "limits": {"global", "per_user"}}`;
    `position` counts from 1, `reason` is one of `JobWaitExplained.reason` or `dispatching`.

    With a position: as the log tells it up to there, with the reasons that were recorded by then (`undecided` before a
    round had looked at the job) and the limits of the last round (None if no decision of before says them). `waiting`
    is then at most the first 10 000, `waiting_total` counts all.
    """

    up_to_position: int = 0
    """0: now."""
