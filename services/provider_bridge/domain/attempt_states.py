"""The phases of an attempt, and how each event moves them. `evolve` never raises; an event that does not fit is passed.

Absent -> Requested -> Starting -> Accepted -> Running -> Ended
any of the four in the middle -> Ending (cancel asked, not yet confirmed gone) -> Ended
Absent -> Forestalled: the cancel came before the request
An ended attempt whose machine is paid for by its existence owes its release: it is driven until that is recorded.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec.structs import replace

from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptCheckpointSaved,
    AttemptCommandAsked,
    AttemptDelivered,
    AttemptDeliveryFailed,
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
from shared.contracts.job import Event

Outcome = Literal["succeeded", "failed", "cancelled", "lost"]


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody asked for this attempt."""


class Forestalled(msgspec.Struct, frozen=True, kw_only=True):
    """Terminal: cancelled before it was requested. Whatever request comes now starts nothing."""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What every phase between request and end remembers. Epoch 0 = never leased."""

    request: AttemptRequested
    epoch: int = 0
    owner: str = ""
    saved_steps: frozenset[int] = frozenset()
    gpu_faults: frozenset[tuple[str, str]] = frozenset()
    """Fault and GPU."""
    deliveries: frozenset[str] = frozenset()
    """What was reported of targets outside, so that a resent report is known."""
    intent_epoch: int = 0
    """Of the newest intended start: only its token is worth anything. 0 = none was intended."""
    intended_at: datetime | None = None
    """When that was: since then a machine may cost money."""
    words: frozenset[str] = frozenset()
    """The provider's words that we did not know."""
    webhooks: frozenset[str] = frozenset()


class Requested(Live, frozen=True, kw_only=True):
    """No start was intended: nothing can be running anywhere."""


class Starting(Live, frozen=True, kw_only=True):
    """A start was intended; whether there is a run is known only at the provider."""

    token_sha256: str


class Accepted(Live, frozen=True, kw_only=True):
    """The provider has the run; its trainer has not said hello."""

    token_sha256: str
    provider_ref: str


class Running(Live, frozen=True, kw_only=True):
    """The trainer said hello. It can do so before the bridge has recorded the provider's answer (no ref yet)."""

    token_sha256: str
    provider_ref: str | None
    started_at: datetime
    asked: frozenset[UUID] = frozenset()
    """Ids of commands that its trainer is told."""


Run = Requested | Starting | Accepted | Running


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """Asked to end while in phase `run`; it ends when the run is confirmed gone."""

    run: Run
    reason: str


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Terminal, for ever. `late_types` are the reports already noted as late."""

    outcome: Outcome
    run: Run
    ended_at: datetime
    by_report: bool
    late_types: frozenset[str] = frozenset()
    is_released: bool = False

    @property
    def owes_release(self) -> bool:
        """Whether a machine that is paid for by its existence is not yet confirmed gone."""
        is_paid = self.run.request.quote.metering == "machine"
        return is_paid and isinstance(self.run, Accepted | Running) and not self.is_released


AttemptState = Absent | Forestalled | Requested | Starting | Accepted | Running | Ending | Ended


def run_of(state: Requested | Starting | Accepted | Running | Ending | Ended) -> Run:
    """The run a state is about, whatever is being done to it."""
    return state.run if isinstance(state, Ending | Ended) else state


def provider_ref_of(run: Run) -> str | None:
    """The provider's name for the run, None while no answer of it is recorded."""
    return run.provider_ref if isinstance(run, Accepted | Running) else None


def delivery_key(event: AttemptDelivered | AttemptDeliveryFailed) -> str:
    """What makes two reports of a delivery the same one: target, files and outcome."""
    status = "delivered" if isinstance(event, AttemptDelivered) else "failed"
    return f"{status} {event.what} {event.target}"


def evolve(state: AttemptState, event: Event) -> AttemptState:
    """The phase after `event`."""
    match state:
        case Absent():
            return _begun(event) or state
        case Forestalled():
            return state
        case Ended():
            return _evolve_ended(state, event)
        case Ending():
            return _ended(state.run, event) or replace(state, run=_evolve_run(state.run, event))
        case _:
            if isinstance(event, AttemptCancelRequested):
                return Ending(run=state, reason=event.reason)
            return _ended(state, event) or _evolve_run(state, event)


def _evolve_ended(state: Ended, event: Event) -> Ended:
    match event:
        case AttemptLateReport():
            return replace(state, late_types=state.late_types | {event.report_type})
        case AttemptMachineReleased():
            return replace(state, is_released=True)
        case AttemptLeased() | AttemptAccepted() | AttemptWordUnknown() | AttemptWebhookReceived():
            return replace(state, run=_evolve_run(state.run, event))
        case _:
            return state


def _begun(event: Event) -> Requested | Forestalled | None:
    match event:
        case AttemptRequested():
            return Requested(request=event)
        case AttemptCancelRequested():
            return Forestalled()
        case _:
            return None


def _ended(run: Run, event: Event) -> Ended | None:
    match event:
        case AttemptSucceeded():
            return Ended(outcome="succeeded", run=run, ended_at=event.ended_at, by_report=True)
        case AttemptFailed():
            by_report = event.exit_code is None and not isinstance(run, Requested | Starting)
            return Ended(outcome="failed", run=run, ended_at=event.ended_at, by_report=by_report)
        case AttemptCancelled():
            return Ended(outcome="cancelled", run=run, ended_at=event.ended_at, by_report=False)
        case AttemptLost():
            return Ended(outcome="lost", run=run, ended_at=event.ended_at, by_report=False)
        case _:
            return None


def _evolve_run(run: Run, event: Event) -> Run:
    match event:
        case AttemptLeased():
            return replace(run, epoch=event.epoch, owner=event.owner)
        case AttemptStartIntended():
            return _intended(run, event)
        case AttemptAccepted():
            return _accepted(run, event)
        case AttemptStarted():
            return _started(run, event)
        case _:
            return _noted(run, event)


def _noted(run: Run, event: Event) -> Run:
    match event:
        case AttemptCheckpointSaved():
            return replace(run, saved_steps=run.saved_steps | {event.checkpoint.step})
        case AttemptGpuFaultReported():
            return replace(run, gpu_faults=run.gpu_faults | {(event.fault, event.gpu)})
        case AttemptWordUnknown() | AttemptWebhookReceived():
            return _heard(run, event)
        case AttemptDelivered() | AttemptDeliveryFailed():
            return replace(run, deliveries=run.deliveries | {delivery_key(event)})
        case AttemptCommandAsked() if isinstance(run, Running):
            return replace(run, asked=run.asked | {event.command_id})
        case _:
            return run


def _heard(run: Run, event: AttemptWordUnknown | AttemptWebhookReceived) -> Run:
    if isinstance(event, AttemptWordUnknown):
        return replace(run, words=run.words | {event.word})
    return replace(run, webhooks=run.webhooks | {event.webhook_id})


def _carried(run: Run) -> dict[str, Any]:
    """What every phase remembers, for the next phase."""
    return {name: getattr(run, name) for name in Live.__struct_fields__}


def _intended(run: Run, event: AttemptStartIntended) -> Run:
    if not isinstance(run, Requested | Starting):
        return run
    return Starting(
        **_carried(replace(run, intended_at=event.intended_at, intent_epoch=event.epoch)),
        token_sha256=event.token_sha256,
    )


def _accepted(run: Run, event: AttemptAccepted) -> Run:
    match run:
        case Starting():
            return Accepted(
                **_carried(run),
                token_sha256=run.token_sha256,
                provider_ref=event.provider_ref,
            )
        case Running():
            return replace(run, provider_ref=event.provider_ref)
        case _:
            return run


def _started(run: Run, event: AttemptStarted) -> Run:
    if not isinstance(run, Starting | Accepted):
        return run
    return Running(
        **_carried(run),
        token_sha256=run.token_sha256,
        provider_ref=provider_ref_of(run),
        started_at=event.started_at,
    )
