"""The road of a job in one match: which fact leads to which request. Pure; `handlers.py` sends what it says.

Each owner's share is sent on a durable of its own (`inbound/subscriptions.py`).
Every request is harmless when repeated: its command id is derived from the event that caused it and from `purpose`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, assert_never
from uuid import UUID

import msgspec

from services.scheduler.domain import placement
from services.scheduler.domain.job_commands import (
    CompleteDelivery,
    JobCommand,
    Place,
    RecordAttemptCancelled,
    RecordAttemptFailed,
    RecordAttemptStarted,
    RecordCheckpoint,
    RecordDatasetsPacked,
    RecordFundsReserved,
    RecordPreparationRefused,
    RecordTrainingFinished,
)
from services.scheduler.domain.job_state import FUNDS_RESERVED
from services.scheduler.domain.placement import Choice, Market, Need, NoChoice, Tried
from shared.contracts.account import FundsRefused, FundsReserved, ReserveFunds, SettleJob
from shared.contracts.artifact import ConfirmArtifacts, DatasetsPacked, DatasetsRefused, PackDatasets
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptCheckpointSaved,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    AttemptSucceeded,
    CancelAttempt,
    RequestAttempt,
)
from shared.contracts.job import (
    Command,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDatasetsPacked,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobLateFact,
    JobPlaced,
    JobSubmitted,
    JobTrainingFinished,
    PackedDataset,
)
from shared.contracts.offers import HardwareRequest, Offer
from shared.contracts.training.spec import planned_steps

RETRY_LATER = frozenset({"version_conflict", "service_unavailable", "storage_full"})
"""Refusals that say nothing of the request: it is sent again later."""

OWNERS_BUG = "internal_error"
"""Not a refusal and no outage: after some tries a person must look, and the next job goes on."""

STORAGE = "storage"
BILLING = "billing"
BRIDGE = "provider_bridge"
LOCAL = "local"

ENDS = (JobCompleted, JobFailed, JobCancelled)

LEADS_ON: Mapping[str | None, frozenset[type[Event]]] = {
    STORAGE: frozenset({JobFundsReserved, JobTrainingFinished}),
    BILLING: frozenset({JobSubmitted, JobLateFact, *ENDS}),
    BRIDGE: frozenset({JobDispatched, JobPlaced, JobCancelRequested}),
    None: frozenset(
        {
            DatasetsPacked,
            DatasetsRefused,
            FundsReserved,
            FundsRefused,
            AttemptStarted,
            AttemptCheckpointSaved,
            AttemptFailed,
            AttemptLost,
            AttemptCancelled,
            AttemptSucceeded,
        }
    ),
}
"""Owner -> the events after which `react` may have something for it: nothing is read because of any other."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A command to the owner of another stream."""

    owner: str
    command: Command
    purpose: str


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """A command to the job's own stream, in the share of `owner`: None = of what happened elsewhere."""

    command: JobCommand
    owner: str | None = None


Outgoing = Ask | Keep


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What the process needs to know of a job: the fold of the job's stream up to the event at hand."""

    submitted: JobSubmitted | None = None
    datasets: tuple[PackedDataset, ...] = ()
    price_micro_usd_per_hour: int = 0
    attempt_id: UUID | None = None
    dispatched: JobDispatched | None = None
    placed: Offer | None = None
    """Where the attempt was placed, if the scheduler chose."""
    tried: tuple[Tried, ...] = ()
    """Where attempts failed before."""
    over: bool = False
    """The job has ended since, or was asked to: nothing more is begun for it."""


def evolve(story: Story, event: Event) -> Story:
    """The story after one more event of the job's stream."""
    match event:
        case JobSubmitted():
            return msgspec.structs.replace(story, submitted=event)
        case JobDatasetsPacked():
            return msgspec.structs.replace(story, datasets=tuple(event.datasets))
        case JobFundsReserved():
            return msgspec.structs.replace(story, price_micro_usd_per_hour=event.price_micro_usd_per_hour)
        case _:
            return _evolve_attempts(story, event)


def _evolve_attempts(story: Story, event: Event) -> Story:
    match event:
        case JobDispatched():
            return msgspec.structs.replace(story, attempt_id=event.attempt_id, dispatched=event, placed=None)
        case JobPlaced():
            return msgspec.structs.replace(story, placed=event.offer)
        case JobAttemptFailed() if story.placed is not None:
            return msgspec.structs.replace(story, tried=(*story.tried, _tried(story.placed, event)))
        case _:
            return story


def _tried(offer: Offer, event: JobAttemptFailed) -> Tried:
    return Tried(
        provider=offer.provider, hardware=offer.hardware, region=offer.region, kind=event.kind, at=event.failed_at
    )


def is_placed_by_us(submitted: JobSubmitted) -> bool:
    """Whether the scheduler chooses the job's machine: everywhere but on this one, unless it asks for hardware."""
    return submitted.provider != LOCAL or submitted.requirements is not None


def is_priced(submitted: JobSubmitted, market: Market) -> bool:
    """Whether anybody has said what a machine for this job costs; of one's own machines billing knows it."""
    if submitted.provider in {LOCAL, placement.OWN_WORKERS}:
        return True
    return placement.likely_price(_need(submitted), market) is not None


def told(events: Iterable[Event], since: Iterable[Event] = ()) -> Story:
    """The fold of a job's events up to the one at hand; `since` are those that came after it."""
    story = Story()
    for event in events:
        story = evolve(story, event)
    return msgspec.structs.replace(story, over=any(isinstance(event, (*ENDS, JobCancelRequested)) for event in since))


def share(following: Iterable[Outgoing], owner: str | None) -> list[Outgoing]:
    """What `owner` is asked; with None what is kept on the job's own stream."""
    return [one for one in following if one.owner == owner]


def react(  # noqa: PLR0911 - one arm for each case
    job_id: UUID, story: Story, event: Event, *, stream_id: UUID, at: datetime, market: Market
) -> Sequence[Outgoing]:
    """What follows from an event of the job's story: at most one request to each owner.

    `stream_id` is whose event it is, `at` when it was recorded, `market` what can be had now; of a job that the
    scheduler does not place it may be empty.
    """
    match event:
        case JobSubmitted() | JobFundsReserved() | JobDispatched() | JobPlaced() if story.over:
            return []  # it waited, or was parked: money set aside now would never be given back, and nobody wants a run
        case JobSubmitted():
            return _reserve(job_id, event, market)
        case JobFundsReserved():
            return _pack(job_id, story)
        case JobDispatched() | JobPlaced():
            return _begin(job_id, story, event, market, at)
        case JobCancelRequested():
            return _stop(job_id, story, event)
        case JobTrainingFinished():
            confirm = ConfirmArtifacts(job_id=job_id, artifacts=event.artifacts)
            return [Ask(owner=STORAGE, command=confirm, purpose="confirm")]
        case JobLateFact() if event.fact != FUNDS_RESERVED:
            return []
        case JobCompleted() | JobFailed() | JobCancelled() | JobLateFact():  # money that was set aside after the end
            return [Ask(owner=BILLING, command=SettleJob(job_id=job_id), purpose="settle")]
        case DatasetsPacked() | DatasetsRefused() | FundsReserved() | FundsRefused():
            return [_preparation_fact(event, at)]
        case _:
            return _attempt_fact(stream_id, event)


def _preparation_fact(event: DatasetsPacked | DatasetsRefused | FundsReserved | FundsRefused, at: datetime) -> Keep:
    match event:
        case DatasetsPacked():
            return Keep(command=RecordDatasetsPacked(datasets=event.datasets, at=at))
        case DatasetsRefused():
            message = f"{event.dataset_id}: {event.message}"
            return Keep(command=_refused("dataset_refused", message, event.advice, at))
        case FundsReserved():
            return Keep(command=_reserved(event.amount_micro_usd, event.price_micro_usd_per_hour, at))
        case FundsRefused():
            return Keep(command=_refused("funds_refused", event.message, None, at))
        case _:
            assert_never(event)


def _attempt_fact(attempt_id: UUID, event: Event) -> Sequence[Outgoing]:  # noqa: PLR0911 - one arm for each case
    match event:
        case AttemptStarted():
            return [Keep(command=RecordAttemptStarted(attempt_id=attempt_id, at=event.started_at))]
        case AttemptCheckpointSaved():
            saved = RecordCheckpoint(attempt_id=attempt_id, checkpoint=event.checkpoint, at=event.saved_at)
            return [Keep(command=saved)]
        case AttemptFailed():
            return [Keep(command=_failed(attempt_id, event.kind, event.message, event.advice, event.ended_at))]
        case AttemptLost():
            return [Keep(command=_failed(attempt_id, "lost", event.message, None, event.ended_at))]
        case AttemptCancelled():
            return [Keep(command=RecordAttemptCancelled(attempt_id=attempt_id, at=event.ended_at))]
        case AttemptSucceeded():
            finished = RecordTrainingFinished(
                attempt_id=attempt_id,
                steps=event.steps,
                final_loss=event.final_loss,
                artifacts=event.artifacts,
                undelivered=event.undelivered,
                at=event.ended_at,
            )
            return [Keep(command=finished)]
        case _:
            return []


def answered(ask: Ask, data: dict[str, Any], at: datetime) -> Sequence[Keep]:
    """What follows from an owner's answer; only storage's list of what never arrived leads on."""
    if not isinstance(ask.command, ConfirmArtifacts):
        return []
    missing = msgspec.convert(data["missing"], tuple[str, ...])
    return [Keep(command=CompleteDelivery(missing=missing, at=at))]


def refused(ask: Ask, code: str, detail: str, at: datetime) -> Keep | None:
    """What follows from an owner's refusal; None when nothing sensible does and a person must look."""
    match ask.command:
        case _ if code == OWNERS_BUG:
            return None
        case PackDatasets():
            return Keep(command=_refused("dataset_refused", detail, None, at))
        case ReserveFunds():
            return Keep(command=_refused("funds_refused", detail, None, at))
        case RequestAttempt() as request:
            return Keep(command=_failed(request.attempt_id, "start_refused", detail, None, at))
        case CancelAttempt() as cancel if code == "not_found":
            return Keep(command=RecordAttemptCancelled(attempt_id=cancel.attempt_id, at=at))
        case _:
            return None


def _reserve(job_id: UUID, event: JobSubmitted, market: Market) -> Sequence[Outgoing]:
    price = placement.likely_price(_need(event), market) if is_placed_by_us(event) else None
    reserve = ReserveFunds(
        job_id=job_id,
        owner=event.account,
        provider=event.provider,
        max_train_steps=planned_steps(event.config),
        price_micro_usd_per_hour=price,
    )
    return [Ask(owner=BILLING, command=reserve, purpose="reserve")]


def _pack(job_id: UUID, story: Story) -> Sequence[Outgoing]:
    """Follows the reservation: nothing is packed that cannot be paid for."""
    if story.submitted is None or not story.submitted.datasets:
        return []
    pack = PackDatasets(job_id=job_id, datasets=story.submitted.datasets)
    return [Ask(owner=STORAGE, command=pack, purpose="pack")]


def _need(submitted: JobSubmitted, story: Story | None = None) -> Need:
    steps = planned_steps(submitted.config)
    resume = story.dispatched.resume if story is not None and story.dispatched is not None else None
    return Need(
        provider=submitted.provider,
        request=submitted.requirements or HardwareRequest(),
        steps_left=None if steps is None else max(1, steps - (resume.step if resume else 0)),
        tried=story.tried if story is not None else (),
    )


def _begin(
    job_id: UUID, story: Story, event: JobDispatched | JobPlaced, market: Market, at: datetime
) -> Sequence[Outgoing]:
    """Chooses the machine where there is a choice; the attempt is asked for when the choice is on record."""
    if isinstance(event, JobPlaced):
        return _start(job_id, story, event.offer)
    if story.submitted is None or not is_placed_by_us(story.submitted):
        return _start(job_id, story, None)
    match placement.choose(_need(story.submitted, story), market, at):
        case Choice() as chosen:
            place = Place(
                attempt_id=event.attempt_id,
                offer=chosen.offer,
                reason=chosen.reason,
                considered=list(chosen.considered),
                at=at,
            )
            return [Keep(owner=BRIDGE, command=place)]
        case NoChoice() as nothing:
            advice = "It is tried again by itself; ask for less, allow more, or set up another provider."
            return [Keep(owner=BRIDGE, command=_failed(event.attempt_id, "no_offer", nothing.message, advice, at))]


def _start(job_id: UUID, story: Story, offer: Offer | None) -> Sequence[Outgoing]:
    event = story.dispatched
    if story.submitted is None or event is None:
        return []
    requirements = story.submitted.requirements
    request = RequestAttempt(
        attempt_id=event.attempt_id,
        job_id=job_id,
        attempt_number=event.attempt_number,
        provider=event.provider if offer is None else offer.provider,
        config=story.submitted.config,
        dataloader=story.submitted.dataloader,
        datasets=list(story.datasets),
        resume=event.resume,
        price_micro_usd_per_hour=story.price_micro_usd_per_hour,
        offer=offer,
        user_id=story.submitted.user_id,
        max_run_s=_shortest(requirements.max_run_s if requirements else None, offer.max_run_s if offer else None),
    )
    return [Ask(owner=BRIDGE, command=request, purpose="request")]


def _shortest(*limits_s: int | None) -> int | None:
    return min((limit for limit in limits_s if limit is not None), default=None)


def _stop(job_id: UUID, story: Story, event: JobCancelRequested) -> Sequence[Outgoing]:
    """Asked even if the request for the run was never sent, or is still on its way: the bridge keeps both orders."""
    if story.attempt_id is None:
        return []
    cancel = CancelAttempt(attempt_id=story.attempt_id, reason=event.reason, job_id=job_id)
    return [Ask(owner=BRIDGE, command=cancel, purpose="cancel")]


def _reserved(amount_micro_usd: int, price_micro_usd_per_hour: int, at: datetime) -> RecordFundsReserved:
    return RecordFundsReserved(
        reserved_micro_usd=amount_micro_usd, price_micro_usd_per_hour=price_micro_usd_per_hour, at=at
    )


def _refused(kind: str, message: str, advice: str | None, at: datetime) -> RecordPreparationRefused:
    return RecordPreparationRefused(kind=kind, message=message, advice=advice, at=at)


def _failed(attempt_id: UUID, kind: str, message: str, advice: str | None, at: datetime) -> RecordAttemptFailed:
    return RecordAttemptFailed(attempt_id=attempt_id, kind=kind, message=message, advice=advice, at=at)
