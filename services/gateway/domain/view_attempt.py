"""One run at one provider, as its own stream tells it."""

from datetime import datetime
from typing import Literal, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from services.gateway.domain.view_job import Failure
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptCheckpointSaved,
    AttemptCommandAsked,
    AttemptDelivered,
    AttemptDeliveryFailed,
    AttemptEvent,
    AttemptFailed,
    AttemptGpuFaultReported,
    AttemptLateReport,
    AttemptLeased,
    AttemptLost,
    AttemptMachineReleased,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
    AttemptWebhookReceived,
    AttemptWordUnknown,
)

AttemptState = Literal["requested", "accepted", "running", "succeeded", "failed", "cancelled", "lost"]
ENDED: frozenset[AttemptState] = frozenset({"succeeded", "failed", "cancelled", "lost"})


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """What last came of giving some files to a target outside; `message` says why it failed."""

    target: str
    what: str
    status: Literal["delivered", "failed"]
    url: str | None
    message: str | None
    files: list[str]
    at: datetime


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt, folded. `token_sha256` is the digest that its trainer's token must have; never shown."""

    attempt_id: UUID
    job_id: UUID
    number: int = 0
    provider: str = ""
    hardware: str | None = None
    price_micro_usd_per_hour: int = 0
    state: AttemptState = "requested"
    token_sha256: str | None = None
    provider_ref: str | None = None
    device: str | None = None
    requested_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    billed_seconds: int | None = None
    checkpoint_step: int | None = None
    cancel_requested: bool = False
    failure: Failure | None = None
    asked: dict[str, str] = {}
    """Name of a command -> the id of the last one that its trainer is told."""
    gpu_faults: list[str] = []
    """Of each fault: what it is, of which GPU, and what the driver said."""
    deliveries: dict[str, DeliveryView] = {}
    """`what target` -> what last came of it."""

    @property
    def ended(self) -> bool:
        """No report of this attempt may change anything any more."""
        return self.state in ENDED


def evolve_attempt(view: AttemptView, event: AttemptEvent) -> AttemptView:  # noqa: PLR0911 - one arm for each case
    """The attempt after one more event of its stream; an ended one stays as it ended."""
    match event:
        case _ if view.ended:
            return view
        case AttemptLeased() | AttemptLateReport() | AttemptMachineReleased():
            return view
        case AttemptWordUnknown() | AttemptWebhookReceived():
            return view
        case AttemptRequested() | AttemptStartIntended() | AttemptAccepted() | AttemptStarted():
            return _beginning(view, event)
        case AttemptCheckpointSaved() | AttemptGpuFaultReported() | AttemptCommandAsked():
            return _middle(view, event)
        case AttemptDelivered() | AttemptDeliveryFailed():
            return _with_delivery(view, event)
        case AttemptCancelRequested():
            return replace(view, cancel_requested=True)
        case AttemptSucceeded() | AttemptFailed() | AttemptCancelled() | AttemptLost():
            return _end(view, event)
        case _:
            assert_never(event)


def _beginning(
    view: AttemptView, event: AttemptRequested | AttemptStartIntended | AttemptAccepted | AttemptStarted
) -> AttemptView:
    match event:
        case AttemptRequested():
            return replace(
                view,
                number=event.attempt_number,
                provider=event.provider,
                hardware=event.quote.hardware,
                price_micro_usd_per_hour=event.quote.price_micro_usd_per_hour,
                requested_at=event.requested_at,
            )
        case AttemptStartIntended():
            return replace(view, token_sha256=event.token_sha256)
        case AttemptAccepted():
            state = "accepted" if view.state == "requested" else view.state
            return replace(view, state=state, provider_ref=event.provider_ref)
        case AttemptStarted():
            return replace(view, state="running", started_at=event.started_at, device=event.device)
        case _:
            assert_never(event)


def _middle(
    view: AttemptView, event: AttemptCheckpointSaved | AttemptGpuFaultReported | AttemptCommandAsked
) -> AttemptView:
    match event:
        case AttemptCheckpointSaved():
            return replace(view, checkpoint_step=event.checkpoint.step)
        case AttemptGpuFaultReported():
            return replace(view, gpu_faults=[*view.gpu_faults, f"{event.fault} of GPU {event.gpu}: {event.detail}"])
        case AttemptCommandAsked():
            return replace(view, asked={**view.asked, event.name: str(event.command_id)})
        case _:
            assert_never(event)


def _with_delivery(view: AttemptView, event: AttemptDelivered | AttemptDeliveryFailed) -> AttemptView:
    delivered = isinstance(event, AttemptDelivered)
    told = DeliveryView(
        target=event.target,
        what=event.what,
        status="delivered" if delivered else "failed",
        url=event.url if delivered else None,
        message=None if delivered else event.message,
        files=event.files,
        at=event.delivered_at if delivered else event.failed_at,
    )
    return replace(view, deliveries={**view.deliveries, f"{event.what} {event.target}": told})


def _end(view: AttemptView, event: AttemptSucceeded | AttemptFailed | AttemptCancelled | AttemptLost) -> AttemptView:
    failure: Failure | None = None
    match event:
        case AttemptSucceeded():
            state = "succeeded"
        case AttemptFailed():
            state = "failed"
            failure = Failure(kind=event.kind, message=event.message, advice=event.advice)
        case AttemptCancelled():
            state = "cancelled"
        case AttemptLost():
            state = "lost"
            failure = Failure(kind="lost", message=event.message)
        case _:
            assert_never(event)
    return replace(view, state=state, failure=failure, ended_at=event.ended_at, billed_seconds=event.billed_seconds)
