"""What may be asked of a job stream, with the moment and the new ids bound in, so that `decide` stays pure.

The first three come from outside (see `shared.contracts.job`); the rest are the scheduler's own.
"""

from datetime import datetime
from uuid import UUID

import msgspec

from shared.contracts.job import ArtifactRef, Checkpoint, ConsideredOffer, DecisionBasis, PackedDataset, SubmitJob
from shared.contracts.offers import Offer


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """`SubmitJob` as received at `at`; `providers` are the names this installation offers."""

    order: SubmitJob
    providers: tuple[str, ...]
    at: datetime


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """The user wants it to end."""

    reason: str
    at: datetime


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """The user wants it out of the lists."""

    at: datetime


class Dispatch(msgspec.Struct, frozen=True, kw_only=True):
    """The queue policy gave the job a slot."""

    attempt_id: UUID
    reason: str
    at: datetime
    basis: DecisionBasis | None = None


class ExplainWait(msgspec.Struct, frozen=True, kw_only=True):
    """The queue policy passed the job over, for this reason (see `JobWaitExplained`)."""

    reason: str
    detail: str
    limit: int
    holders: tuple[str, ...]
    basis: DecisionBasis | None = None


class CompleteDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """Storage was asked what arrived: these names did not."""

    missing: tuple[str, ...]
    at: datetime


class RecordDatasetsPacked(msgspec.Struct, frozen=True, kw_only=True):
    """Storage holds every dataset."""

    datasets: list[PackedDataset]
    at: datetime


class RecordFundsReserved(msgspec.Struct, frozen=True, kw_only=True):
    """Billing holds the estimate."""

    reserved_micro_usd: int
    price_micro_usd_per_hour: int
    at: datetime


class RecordPreparationRefused(msgspec.Struct, frozen=True, kw_only=True):
    """Storage or billing said no; `kind` is `dataset_refused` or `funds_refused`."""

    kind: str
    message: str
    advice: str | None
    at: datetime


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt's machine was chosen."""

    attempt_id: UUID
    offer: Offer
    reason: str
    considered: list[ConsideredOffer]
    at: datetime


class RecordAttemptStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt's trainer said hello."""

    attempt_id: UUID
    at: datetime


class RecordCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of the attempt is wholly stored."""

    attempt_id: UUID
    checkpoint: Checkpoint
    at: datetime


class RecordAttemptFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt ended without a model, or was never taken on (kind `start_refused`)."""

    attempt_id: UUID
    kind: str
    message: str
    advice: str | None
    at: datetime


class RecordAttemptCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt is confirmed gone."""

    attempt_id: UUID
    at: datetime


class RecordTrainingFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt trained a model."""

    attempt_id: UUID
    steps: int
    final_loss: float | None
    artifacts: list[ArtifactRef]
    undelivered: list[str]
    at: datetime


PreparationFact = RecordDatasetsPacked | RecordFundsReserved | RecordPreparationRefused
AttemptFact = (
    RecordAttemptStarted | RecordCheckpoint | RecordAttemptFailed | RecordAttemptCancelled | RecordTrainingFinished
)
Fact = PreparationFact | AttemptFact
"""What happened elsewhere and must be kept here: never refused, at worst late."""

JobCommand = Submit | Cancel | Delete | Dispatch | Place | ExplainWait | CompleteDelivery | Fact
