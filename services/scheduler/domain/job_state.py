"""What a job's past adds up to: one struct per phase, holding what `decide` needs and no more.

`evolve` never raises; an event that does not apply in a phase leaves the state as it is. Imported by the job decider,
the queue and the process of this service, and by nobody else.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from shared.contracts.job import (
    Checkpoint,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCheckpointed,
    JobCompleted,
    JobDatasetsPacked,
    JobDeleted,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobLateFact,
    JobQueued,
    JobStarted,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
)

FactKey = tuple[str, UUID | None]
"""A fact's words and its attempt: the same fact told twice has the same key."""

Outcome = Literal["completed", "failed", "cancelled"]

DATASETS_PACKED = "datasets packed"
FUNDS_RESERVED = "funds reserved"
ATTEMPT_STARTED = "attempt started"
ATTEMPT_FAILED = "attempt failed"
ATTEMPT_CANCELLED = "attempt cancelled"
TRAINING_FINISHED = "training finished"


def checkpoint_saved(step: int) -> str:
    """The words of a stored checkpoint as a fact."""
    return f"checkpoint {step} saved"


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was submitted under this id."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same for the job's whole life."""

    provider: str
    max_attempts: int
    has_datasets: bool


class Preparing(msgspec.Struct, frozen=True, kw_only=True):
    """Accepted; waits for its data (if it has any) and for its funds, which come in any order."""

    order: Order
    packed: bool = False
    funded: bool = False
    seen: frozenset[FactKey] = frozenset()


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """Waits for a slot. `attempts` counts the attempts that were made; `wait_reason` is the last one explained."""

    order: Order
    attempts: int
    checkpoint: Checkpoint | None
    not_before: datetime | None
    wait_reason: str | None
    seen: frozenset[FactKey]


class Dispatched(msgspec.Struct, frozen=True, kw_only=True):
    """Holds a slot; its attempt has not said hello. `cancel_reason` is set once it was asked to end."""

    order: Order
    attempts: int
    attempt_id: UUID
    checkpoint: Checkpoint | None
    cancel_reason: str | None
    seen: frozenset[FactKey]


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Holds a slot; its attempt trains."""

    order: Order
    attempts: int
    attempt_id: UUID
    checkpoint: Checkpoint | None
    cancel_reason: str | None
    seen: frozenset[FactKey]


class Completing(msgspec.Struct, frozen=True, kw_only=True):
    """The model is trained; what arrived of it is being confirmed. The slot is free again."""

    order: Order
    undelivered: tuple[str, ...]
    seen: frozenset[FactKey]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Terminal. `seen` tells a fact that is already written down from one that comes late."""

    order: Order
    outcome: Outcome
    deleted: bool
    seen: frozenset[FactKey]


Job = Absent | Preparing | Queued | Dispatched | Running | Completing | Ended
Live = Preparing | Queued | Dispatched | Running | Completing
Holding = Dispatched | Running
"""The phases that hold a slot."""


def evolve(state: Job, event: Event) -> Job:
    """The state after one more event."""
    match state:
        case Preparing():
            return _evolve_preparing(state, event)
        case Queued():
            return _evolve_queued(state, event)
        case Dispatched() | Running():
            return _evolve_holding(state, event)
        case Completing():
            return _evolve_end(state, event)
        case Ended():
            return _evolve_ended(state, event)
        case Absent():
            return _submitted(event) if isinstance(event, JobSubmitted) else state


def _submitted(event: JobSubmitted) -> Preparing:
    order = Order(provider=event.provider, max_attempts=event.max_attempts, has_datasets=bool(event.datasets))
    return Preparing(order=order, packed=not event.datasets)


def _evolve_ended(state: Ended, event: Event) -> Ended:
    match event:
        case JobLateFact():
            return msgspec.structs.replace(state, seen=state.seen | {(event.fact, event.attempt_id)})
        case JobDeleted():
            return msgspec.structs.replace(state, deleted=True)
        case _:
            return state


def _evolve_end(state: Live, event: Event) -> Job:
    """What ends a job in any phase."""
    match event:
        case JobCompleted():
            return _ended(state, "completed", ())
        case JobFailed():
            return _ended(state, "failed", ((event.kind, None),))
        case JobCancelled() if isinstance(state, Dispatched | Running):
            return _ended(state, "cancelled", ((ATTEMPT_CANCELLED, state.attempt_id),))
        case JobCancelled():
            return _ended(state, "cancelled", ())
        case _:
            return state


def _ended(state: Live, outcome: Outcome, facts: tuple[FactKey, ...]) -> Ended:
    return Ended(order=state.order, outcome=outcome, deleted=False, seen=state.seen | frozenset(facts))


def _evolve_preparing(state: Preparing, event: Event) -> Job:
    match event:
        case JobDatasetsPacked():
            return msgspec.structs.replace(state, packed=True, seen=state.seen | {(DATASETS_PACKED, None)})
        case JobFundsReserved():
            return msgspec.structs.replace(state, funded=True, seen=state.seen | {(FUNDS_RESERVED, None)})
        case JobQueued():
            return Queued(
                order=state.order,
                attempts=0,
                checkpoint=None,
                not_before=event.not_before,
                wait_reason=None,
                seen=state.seen,
            )
        case _:
            return _evolve_end(state, event)


def _evolve_queued(state: Queued, event: Event) -> Job:
    match event:
        case JobWaitExplained():
            return msgspec.structs.replace(state, wait_reason=event.reason)
        case JobDispatched():
            return Dispatched(
                order=state.order,
                attempts=event.attempt_number,
                attempt_id=event.attempt_id,
                checkpoint=state.checkpoint,
                cancel_reason=None,
                seen=state.seen,
            )
        case _:
            return _evolve_end(state, event)


def _evolve_holding(state: Holding, event: Event) -> Job:  # noqa: PLR0911 - one arm for each case
    match event:
        case JobStarted():
            return Running(
                order=state.order,
                attempts=state.attempts,
                attempt_id=state.attempt_id,
                checkpoint=state.checkpoint,
                cancel_reason=state.cancel_reason,
                seen=state.seen | {(ATTEMPT_STARTED, event.attempt_id)},
            )
        case JobCheckpointed():
            key = (checkpoint_saved(event.checkpoint.step), event.attempt_id)
            return msgspec.structs.replace(state, checkpoint=event.checkpoint, seen=state.seen | {key})
        case JobCancelRequested():
            return msgspec.structs.replace(state, cancel_reason=event.reason)
        case JobAttemptFailed():
            return msgspec.structs.replace(state, seen=state.seen | {(ATTEMPT_FAILED, event.attempt_id)})
        case JobQueued():
            return Queued(
                order=state.order,
                attempts=state.attempts,
                checkpoint=state.checkpoint,
                not_before=event.not_before,
                wait_reason=None,
                seen=state.seen,
            )
        case JobTrainingFinished():
            key = (TRAINING_FINISHED, event.attempt_id)
            return Completing(order=state.order, undelivered=tuple(event.undelivered), seen=state.seen | {key})
        case _:
            return _evolve_end(state, event)
