"""Commands accepted by, and events written to, `attempt-<uuid7>` streams. Owner: provider-bridge."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.job import ArtifactRef, Checkpoint, Command, Event, PackedDataset
from shared.contracts.offers import Offer

TrainerCommandName = Literal["checkpoint_now", "sample_now"]


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """The price an attempt is bound to, fixed when it is requested."""

    hardware: str
    price_micro_usd_per_hour: int
    metering: Literal["trainer", "machine"] = "trainer"
    """What is paid for: the seconds of the trainer, or all that a machine of somebody else exists."""
    offer: Offer | None = None
    """What was chosen, where there was a choice."""


# ---- events ----------------------------------------------------------------------------------------------------------


class AttemptRequested(Event, frozen=True, kw_only=True, tag="attempt.requested.v1"):
    """The bridge owns this run; nothing has been started."""

    job_id: UUID
    attempt_number: int
    provider: str
    quote: Quote
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]
    datasets: list[PackedDataset]
    resume: Checkpoint | None
    requested_at: datetime
    user_id: str | None = None
    """Whose credentials are used, where that user has own ones."""
    max_run_s: int | None = None


class AttemptLeased(Event, frozen=True, kw_only=True, tag="attempt.leased.v1"):
    """A bridge process owns the attempt under this epoch; every lower epoch is stale from here on."""

    epoch: int
    owner: str
    leased_at: datetime


class AttemptStartIntended(Event, frozen=True, kw_only=True, tag="attempt.start_intended.v1"):
    """Written before the provider is called. A reply that never came is resolved by looking for the tag there."""

    epoch: int
    token_sha256: str
    """Digest of the attempt token that the trainer will report under; the token itself is in no event."""
    intended_at: datetime


class AttemptAccepted(Event, frozen=True, kw_only=True, tag="attempt.accepted.v1"):
    """The provider has the run."""

    epoch: int
    provider_ref: str
    accepted_at: datetime


class AttemptStarted(Event, frozen=True, kw_only=True, tag="attempt.started.v1"):
    """The trainer said hello under the attempt's token: metering starts here."""

    started_at: datetime
    device: str


class AttemptCheckpointSaved(Event, frozen=True, kw_only=True, tag="attempt.checkpoint_saved.v1"):
    """A checkpoint is stored with all its files."""

    checkpoint: Checkpoint
    saved_at: datetime


class AttemptGpuFaultReported(Event, frozen=True, kw_only=True, tag="attempt.gpu_fault_reported.v1"):
    """A GPU of this run is faulty, once for each fault and GPU. The run ends soon after, as `gpu_fault`."""

    fault: str
    """One of `shared.contracts.run.GpuFaultKind`; a newer trainer may know more."""
    gpu: str
    detail: str
    step: int | None
    reported_at: datetime


class AttemptDelivered(Event, frozen=True, kw_only=True, tag="attempt.delivered.v1"):
    """Files of this run are at a target outside, such as a hub. Beside the training: it says nothing of how that ended.

    `target` names the place without secrets (`hub:ann/digits`), `what` the files: `results`, or `checkpoint-50`.
    """

    target: str
    what: str
    url: str | None
    files: list[str]
    delivered_at: datetime


class AttemptDeliveryFailed(Event, frozen=True, kw_only=True, tag="attempt.delivery_failed.v1"):
    """A target outside did not get these files after all tries. What was trained is stored with us all the same."""

    target: str
    what: str
    message: str
    files: list[str]
    failed_at: datetime


class AttemptCommandAsked(Event, frozen=True, kw_only=True, tag="attempt.command_asked.v1"):
    """The trainer is to save or show what it has; told with its next acknowledgement, answered by a report line."""

    command_id: UUID
    name: TrainerCommandName
    asked_at: datetime


class AttemptCancelRequested(Event, frozen=True, kw_only=True, tag="attempt.cancel_requested.v1"):
    """The run must end; its machine is told after this is recorded. Also the first event of one never requested."""

    requested_at: datetime
    reason: str


class AttemptSucceeded(Event, frozen=True, kw_only=True, tag="attempt.succeeded.v1"):
    """Terminal: a model was trained. `billed_seconds` counts from `attempt.started` to the end."""

    steps: int
    final_loss: float | None
    artifacts: list[ArtifactRef]
    undelivered: list[str]
    ended_at: datetime
    billed_seconds: int


class AttemptFailed(Event, frozen=True, kw_only=True, tag="attempt.failed.v1"):
    """Terminal: the trainer ended by itself without a model."""

    kind: str
    message: str
    advice: str | None
    exit_code: int | None
    ended_at: datetime
    billed_seconds: int


class AttemptCancelled(Event, frozen=True, kw_only=True, tag="attempt.cancelled.v1"):
    """Terminal: ended because it was asked to, and confirmed gone."""

    ended_at: datetime
    billed_seconds: int


class AttemptLost(Event, frozen=True, kw_only=True, tag="attempt.lost.v1"):
    """Terminal: the machine is gone and nobody knows how it ended."""

    message: str
    ended_at: datetime
    billed_seconds: int


class AttemptMachineReleased(Event, frozen=True, kw_only=True, tag="attempt.machine_released.v1"):
    """After the end: the machine is confirmed gone, and these were all its seconds. Written where machines are paid.

    `basis` says whose count it is: the provider's own, or our clock from its start to the moment it was seen gone.
    """

    provider_ref: str | None
    """None: there never was a machine."""
    started_at: datetime
    ended_at: datetime
    seconds: int
    price_micro_usd_per_hour: int
    basis: Literal["provider", "measured"]


class AttemptWordUnknown(Event, frozen=True, kw_only=True, tag="attempt.word_unknown.v1"):
    """The provider called the run something that is in no table of ours: the last known state stays. Once a word."""

    word: str
    seen_at: datetime


class AttemptWebhookReceived(Event, frozen=True, kw_only=True, tag="attempt.webhook_received.v1"):
    """The provider told us something about the run: a hint to look, which moves nothing by itself."""

    webhook_id: str
    word: str
    received_at: datetime


class AttemptLateReport(Event, frozen=True, kw_only=True, tag="attempt.late_report.v1"):
    """A report that came after the end, kept beside it."""

    report_type: str
    at: datetime


AttemptEvent = (
    AttemptRequested
    | AttemptLeased
    | AttemptStartIntended
    | AttemptAccepted
    | AttemptStarted
    | AttemptCheckpointSaved
    | AttemptGpuFaultReported
    | AttemptCommandAsked
    | AttemptDelivered
    | AttemptDeliveryFailed
    | AttemptCancelRequested
    | AttemptSucceeded
    | AttemptFailed
    | AttemptCancelled
    | AttemptLost
    | AttemptMachineReleased
    | AttemptWordUnknown
    | AttemptWebhookReceived
    | AttemptLateReport
)

# ---- commands; the subject is cmd.provider_bridge.<tag> --------------------------------------------------------------


class RequestAttempt(Command, frozen=True, kw_only=True, tag="request_attempt"):
    """Asks for one run at one provider. A repeat with the same attempt id changes nothing."""

    attempt_id: UUID
    job_id: UUID
    attempt_number: int
    provider: str
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]
    datasets: list[PackedDataset]
    resume: Checkpoint | None
    price_micro_usd_per_hour: int
    """Of this machine; what an offer costs stands in the offer."""
    offer: Offer | None = None
    user_id: str | None = None
    max_run_s: int | None = None


class CancelAttempt(Command, frozen=True, kw_only=True, tag="cancel_attempt"):
    """Ends a run; repeating it, or naming one that has ended, is harmless.

    An attempt that nobody has requested yet is recorded as cancelled too, if its job is named: a request that comes
    later starts nothing. Without `job_id` such an attempt is `not_found`.
    """

    attempt_id: UUID
    reason: str
    job_id: UUID | None = None


class AskTrainer(Command, frozen=True, kw_only=True, tag="ask_trainer"):
    """Asks a running trainer to save or show what it has. A repeat with the same command id changes nothing."""

    attempt_id: UUID
    command_id: UUID
    name: TrainerCommandName


class ReportMilestone(Command, frozen=True, kw_only=True, tag="report_milestone"):
    """A trainer's report that changes history, as sent (`ReportLine`).

    It is a hello, checkpoint, delivery, gpu_fault, done or failed.
    """

    attempt_id: UUID
    seq: int
    report_type: str
    data: dict[str, Any]
    at: datetime
